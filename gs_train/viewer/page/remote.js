// Shows pictures that the server renders, for browsers without WebGL2. It has the functions of sog.js, order.js and
// draw.js that main.js calls.

const NEAR = 0.01, REST_MS = 250;

const contextOf = (canvas) => canvas.getContext("2d");
const readSplat = async () => ({ count: 0, positions: new Float32Array(0), colours: new Uint8Array(0) });
const makeSorter = () => () => false;

// Asks for one picture at a time; a newer camera replaces one that waits. A camera at rest gets a picture in full size.
function makeRenderer(context) {
  const { canvas } = context, message = document.getElementById("message");
  let next = null, busy = false, rest = 0;
  async function ask() {
    if (busy || next === null) return;
    const image = new Image();
    image.src = next;
    [next, busy] = [null, true];
    try {
      await image.decode();
      context.drawImage(image, 0, 0, canvas.width, canvas.height);
      message.textContent = "";
    } catch {
      message.textContent = "gs-train view sends no picture: see its terminal, then reload this page.";
    }
    busy = false;
    ask();
  }
  function wish(camera, moving) {
    const numbers = [camera.turn, camera.shift, camera.focal, camera.centre, camera.size].flat();
    next = `picture?camera=${numbers.join(",")}&moving=${moving}`;
    ask();
  }
  function draw(camera) {
    clearTimeout(rest);
    wish(camera, 1);
    rest = setTimeout(wish, REST_MS, camera, 0);
  }
  return { setOrder() {}, draw };
}
