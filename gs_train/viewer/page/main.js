// Starts the page: reads the splat, then draws whenever something changes.

const element = (id) => document.getElementById(id);
const settings = JSON.parse(element("settings").textContent);
const canvas = element("canvas"), message = element("message");
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const FLIGHT_MS = 600, SLOW_MS = 60, MOST_PIXELS_PER_CSS = 2;

function decoded(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

async function start() {
  const gl = contextOf(canvas);
  const splat = await readSplat(gl, decoded(element("data").textContent.trim()));
  element("data").remove();
  const renderer = makeRenderer(gl, splat);
  const { cameras, up, background } = settings;
  let pose = cameras[0], lens = cameras[0], focus = onAxis(pose), flight = null, picked = 0;
  let changed = true, moving = false, lastDraw = 0, slow = false, ordered = false, ready;
  const firstPicture = new Promise((resolve) => { ready = resolve; });
  const waiting = new Map();
  const sort = makeSorter(splat.positions, NEAR, (order, id) => {
    renderer.setOrder(order);
    changed = ordered = true;
    waiting.get(id)?.();
    waiting.delete(id);
    schedule();
  });

  // The point of the optical axis that is nearest to the scene's focus: turning about it keeps the picture still.
  function onAxis(from) {
    const forward = axis(from.turn, 2);
    const distance = dot(add(settings.focus, from.eye, -1), forward);
    return add(from.eye, forward, Math.max(distance, 0.1 * settings.distance));
  }

  const depthRow = (camera) => [...axis(camera.turn, 2), camera.shift[2]];
  let scheduled = false;
  function schedule() {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(frame);
  }
  function move(next) {
    pose = next;
    changed = true;
    schedule();
  }

  function frame(now) {
    scheduled = false;
    const passed = now - lastDraw;
    if (flight) {
      const share = Math.min(1, (now - flight.began) / FLIGHT_MS);
      pose = between(flight.from, flight.to, share * share * (3 - 2 * share));
      if (share === 1) [flight, focus] = [null, onAxis(pose)];
      changed = true;
    }
    fly(Math.min(passed, 100) / 1000);
    // Two slow frames of a motion in a row: draw a quarter of the pixels until it ends.
    if (moving && passed < 1000) slow = slow || passed > SLOW_MS;
    moving = flight !== null || held.size > 0 || pointers.size > 0;
    if (!moving && slow) [slow, changed] = [false, true];
    if (changed) {
      changed = false;
      const camera = fitted(pose, lens, canvas.width, canvas.height);
      sort(depthRow(camera));
      renderer.draw(camera, background, slow ? 0.5 : 1);
      element("rate").value = passed < 1000 ? `${Math.round(1000 / passed)} pictures per second` : "at rest";
      lastDraw = now;
      if (ordered) ready();
    }
    if (moving) schedule();
  }

  // ---- Keys, pointers, buttons
  const held = new Set(), pointers = new Map();
  function fly(seconds) {
    const pressed = (key) => (held.has(key) ? 1 : 0);
    const steps = [pressed("d") - pressed("a"), pressed("q") - pressed("e"), pressed("w") - pressed("s")];
    if (!steps.some(Boolean)) return;
    const step = apply(transposed(pose.turn), steps.map((value) => value * seconds * 0.5 * settings.distance));
    pose = { ...pose, eye: add(pose.eye, step) };
    focus = add(focus, step);
    changed = true;
  }
  function pan(dx, dy) {
    const { focal } = fitted(pose, lens, canvas.clientWidth, canvas.clientHeight);
    const depth = dot(add(focus, pose.eye, -1), axis(pose.turn, 2));
    const step = apply(transposed(pose.turn), [-dx * depth / focal[0], -dy * depth / focal[1], 0]);
    focus = add(focus, step);
    move({ ...pose, eye: add(pose.eye, step) });
  }
  const nearer = (factor) => move({ ...pose, eye: add(focus, add(pose.eye, focus, -1), factor) });
  function flyTo(index) {
    if (!cameras[index]) return;
    picked = index;
    lens = cameras[index];
    for (const [i, button] of [...element("strip").children].entries()) button.ariaPressed = String(i === index);
    flight = { from: pose, to: cameras[index], began: calm.matches ? -FLIGHT_MS : performance.now() };
    schedule();
  }
  function spread() {
    const [a, b] = [...pointers.values()];
    return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, apart: Math.hypot(a.x - b.x, a.y - b.y) || 1 };
  }
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    flight = null;
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY, pans: event.button === 2 || event.shiftKey });
    schedule();
  });
  canvas.addEventListener("pointermove", (event) => {
    const pointer = pointers.get(event.pointerId);
    if (!pointer) return;
    const before = pointers.size === 2 ? spread() : null;
    const dx = event.clientX - pointer.x, dy = event.clientY - pointer.y;
    Object.assign(pointer, { x: event.clientX, y: event.clientY });
    if (before) {
      const after = spread();
      pan(after.x - before.x, after.y - before.y);
      nearer(before.apart / after.apart);
    } else if (pointer.pans) pan(dx, dy);
    else move(orbited(pose, focus, up, -dx * 0.006, dy * 0.006));
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => {
      pointers.delete(event.pointerId);
      schedule();
    });
  }
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    nearer(Math.exp(0.0015 * event.deltaY * (event.deltaMode ? 30 : 1)));
  }, { passive: false });
  canvas.addEventListener("dblclick", (event) => {
    const point = frontmost(splat, fitted(pose, lens, canvas.clientWidth, canvas.clientHeight), event);
    if (point) focus = point;
  });
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase();
    if ("wasdqe".includes(key) && key.length === 1) held.add(key);
    else if (key >= "1" && key <= "9") flyTo(Number(key) - 1);
    else if (key === "f") element("rate").hidden = !element("rate").hidden;
    else if (key === "escape") showHelp(false);
    schedule();
  });
  addEventListener("keyup", (event) => held.delete(event.key.toLowerCase()));
  addEventListener("blur", () => held.clear());
  function showHelp(shown) {
    element("help").hidden = !shown;
    element("help-button").ariaExpanded = String(shown);
  }
  element("help-button").addEventListener("click", () => showHelp(element("help").hidden));
  element("full-button").addEventListener("click", () => {
    if (document.fullscreenElement) document.exitFullscreen();
    else document.documentElement.requestFullscreen?.();
  });
  if (settings.photos) {
    for (const [index, camera] of cameras.entries()) {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", textContent: String(index + 1), title: camera.name });
      button.addEventListener("click", () => flyTo(index));
      element("strip").append(button);
    }
    element("strip").firstChild.ariaPressed = "true";
  }

  new ResizeObserver(() => {
    const share = Math.min(devicePixelRatio || 1, MOST_PIXELS_PER_CSS);
    canvas.width = Math.max(1, Math.round(share * canvas.clientWidth));
    canvas.height = Math.max(1, Math.round(share * canvas.clientHeight));
    changed = true;
    schedule();
  }).observe(canvas);
  canvas.addEventListener("webglcontextlost", () => location.reload());
  message.textContent = "";

  // For scripts: a camera is {turn, shift, focal, centre, size}. `sorted` resolves when the order is that of the camera,
  // `picture` to a PNG data URL.
  let calls = 0;
  function sorted(camera) {
    const id = ++calls;
    return new Promise((resolve) => {
      waiting.set(id, resolve);
      if (!sort(depthRow(camera), id)) resolve();
    });
  }
  async function picture(camera) {
    await firstPicture;
    await sorted(camera);
    [canvas.width, canvas.height] = camera.size;
    renderer.draw(camera, background, 1);
    return canvas.toDataURL("image/png");
  }
  window.gsTrain = { picture, sorted, firstPicture, count: splat.count, settings, camera: () => picked };
}

// The position of the nearest Gaussian that covers a pixel well, or null.
function frontmost(splat, camera, event) {
  let best = Infinity, found = null;
  for (let i = 0; i < splat.count; i++) {
    if (splat.colours[4 * i + 3] < 0.3) continue;
    const point = splat.positions.subarray(3 * i, 3 * i + 3);
    const [x, y, z] = apply(camera.turn, point).map((value, k) => value + camera.shift[k]);
    if (z < NEAR || z > best) continue;
    const dx = camera.focal[0] * x / z + camera.centre[0] - event.offsetX;
    const dy = camera.focal[1] * y / z + camera.centre[1] - event.offsetY;
    if (dx * dx + dy * dy < 64) [best, found] = [z, [...point]];
  }
  return found;
}

start().catch((error) => { message.textContent = error.message; });
