// Opens a page that shows pictures of the server, for test_live_browser.py: node show_live.cjs CHROMIUM URL OUT_FOLDER [--no-webgl]
// Takes a picture of the page, drags the camera, and takes another one. Prints requests to other hosts and faults as JSON.
const { chromium } = require("playwright-core");

(async () => {
  const [executablePath, url, out, noWebgl] = process.argv.slice(2);
  const graphics = noWebgl ? ["--disable-gpu", "--disable-3d-apis"] : ["--enable-unsafe-swiftshader", "--use-gl=angle", "--use-angle=swiftshader"];
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", ...graphics] });
  const page = await browser.newPage({ viewport: { width: 900, height: 600 } });
  const requests = [], faults = [];
  page.on("request", (request) => requests.push(request.url()));
  page.on("pageerror", (error) => faults.push(error.message));
  await page.goto(url);
  const webgl = await page.evaluate(() => Boolean(document.createElement("canvas").getContext("webgl2")));

  // A page at rest: two equal pictures that differ from the one before, two seconds apart.
  async function settled(before) {
    let last = null;
    for (let i = 0; i < 60; i++) {
      await page.waitForTimeout(2000);
      const picture = await page.screenshot({ timeout: 60000 });
      if (last && picture.equals(last) && !(before && picture.equals(before)) && i > 2) return picture;
      last = picture;
    }
    throw new Error("the page does not come to rest");
  }
  const fs = require("fs"), first = await settled(null);
  fs.writeFileSync(`${out}/first.png`, first);
  await page.mouse.move(250, 400);
  await page.mouse.down();
  for (let i = 1; i <= 8; i++) await page.mouse.move(250 + 20 * i, 400);
  await page.mouse.up();
  fs.writeFileSync(`${out}/dragged.png`, await settled(first));
  await browser.close();
  const other = requests.filter((each) => !each.startsWith(url) && !/^(data|blob):/.test(each));
  console.log(JSON.stringify({ requests: other, faults, webgl }));
})();
