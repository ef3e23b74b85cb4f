// Draws cameras on a page in headless Chromium, for tests and scripts: node show_page.cjs CHROMIUM PAGE CAMERAS.json OUT_FOLDER
// Writes the pictures and a screenshot of the page as PNG. Prints as JSON: the URLs that the page requested besides its
// own, its faults, whether its help opens, milliseconds from loading to the first picture and of each sort.
const fs = require("fs");
const { chromium } = require("playwright-core");

(async () => {
  const [executablePath, file, cameras, out] = process.argv.slice(2);
  const args = ["--no-sandbox", "--enable-unsafe-swiftshader", "--use-gl=angle", "--use-angle=swiftshader"];
  const browser = await chromium.launch({ executablePath, args });
  const page = await browser.newPage({ viewport: { width: 390, height: 300 } });
  const requests = [], faults = [];
  page.on("request", (request) => requests.push(request.url()));
  page.on("pageerror", (error) => faults.push(error.message));
  await page.goto("file://" + file);
  const began = Date.now();
  await page.waitForFunction(() => window.gsTrain || document.getElementById("message").textContent !== "Loading", null, { timeout: 100000 });
  await page.evaluate(async () => {
    await window.gsTrain.firstPicture;
    // Reading a pixel waits until the picture is drawn.
    document.getElementById("canvas").getContext("webgl2").readPixels(0, 0, 1, 1, 6408, 5121, new Uint8Array(4));
  });
  const first = Date.now() - began, sorts = [];
  await page.screenshot({ path: `${out}/page.png`, timeout: 120000 });
  const pictures = JSON.parse(fs.readFileSync(cameras));
  for (const [index, camera] of pictures.entries()) {
    sorts.push(await page.evaluate(async (each) => {
      const start = performance.now();
      await window.gsTrain.sorted(each);
      return performance.now() - start;
    }, camera));
    const url = await page.evaluate((each) => window.gsTrain.picture(each), camera);
    fs.writeFileSync(`${out}/${index}.png`, Buffer.from(url.split(",")[1], "base64"));
  }
  await page.keyboard.press("2");
  await page.mouse.move(150, 100);
  await page.mouse.down();
  await page.mouse.move(190, 120);
  await page.mouse.up();
  await page.mouse.wheel(0, 200);
  await page.click("#help-button");
  const shown = await page.evaluate(() => !document.getElementById("help").hidden);
  await browser.close();
  const other = requests.filter((url) => !/^(data|blob):/.test(url)).slice(1);
  console.log(JSON.stringify({ requests: other, faults, shown, first, sorts }));
})();
