// Draws cameras on a page in headless Chromium, for test_viewer.py: node show_page.cjs CHROMIUM PAGE CAMERAS.json OUT_FOLDER
// Prints the URLs that the page requested, besides its own, as JSON.
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
  await page.waitForFunction(() => window.gsTrain || document.getElementById("message").textContent !== "Loading", null, { timeout: 100000 });
  const pictures = JSON.parse(fs.readFileSync(cameras));
  for (const [index, camera] of pictures.entries()) {
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
  console.log(JSON.stringify({ requests: other, faults, shown }));
})();
