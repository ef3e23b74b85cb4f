// Uses a report in headless Chromium, for test_report.py: node use_report.cjs CHROMIUM PAGE OUT_FOLDER
// Prints the observations as JSON.
const { chromium } = require("playwright-core");

(async () => {
  const [executablePath, file, out] = process.argv.slice(2);
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  const page = await browser.newPage({ viewport: { width: 390, height: 800 } });
  const requests = [], faults = [];
  page.on("request", (request) => requests.push(request.url()));
  page.on("pageerror", (error) => faults.push(error.message));
  page.on("console", (message) => faults.push(message.text()));
  await page.goto("file://" + file);
  const overflow = [];
  for (const width of [390, 1100]) {
    await page.setViewportSize({ width, height: 800 });
    overflow.push(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth));
  }
  const name = () => page.textContent("#name");
  const column = (index) => page.evaluate((each) => [...document.querySelectorAll("#views tbody tr")].map((row) => row.cells[each].textContent), index);
  const first = await name();
  await page.locator("#pair").screenshot({ path: out + "/slider.png" });
  await page.click("[data-mode=difference]");
  await page.locator("#pair").screenshot({ path: out + "/difference.png" });
  await page.click("[data-mode=slider]");
  await page.click("#views tbody tr");
  const afterArrows = [];
  for (let press = 0; press < 2; press++) {
    await page.keyboard.press("ArrowDown");
    afterArrows.push(await name());
  }
  await page.click("#views thead th:nth-child(3) button");
  const bySsim = await column(1);
  await page.click("#views thead th:nth-child(1) button");
  const byName = await column(0);
  await browser.close();
  const other = requests.filter((url) => !/^(data|blob):/.test(url)).slice(1);
  console.log(JSON.stringify({ requests: other, faults, overflow, first, afterArrows, bySsim, byName }));
})();
