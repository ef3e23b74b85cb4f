// Cameras with OpenCV axes (x right, y down, z forward). A pose has eye [3] and turn [9], the row-major rotation from
// the world to the camera, so its rows are the camera's axes in the world.

const add = (a, b, share = 1) => a.map((value, i) => value + share * b[i]);
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const axis = (turn, i) => turn.slice(3 * i, 3 * i + 3);
const unit = (a) => a.map((value) => value / (Math.hypot(...a) || 1));

// The rotation by an angle about a unit vector.
function about([x, y, z], angle) {
  const c = Math.cos(angle), s = Math.sin(angle), d = 1 - c;
  return [
    c + x * x * d, x * y * d - z * s, x * z * d + y * s,
    y * x * d + z * s, c + y * y * d, y * z * d - x * s,
    z * x * d - y * s, z * y * d + x * s, c + z * z * d,
  ];
}

const apply = (m, v) => [dot(axis(m, 0), v), dot(axis(m, 1), v), dot(axis(m, 2), v)];
const transposed = (m) => [m[0], m[3], m[6], m[1], m[4], m[7], m[2], m[5], m[8]];
const product = (a, b) => [0, 1, 2].flatMap((i) => apply(transposed(b), axis(a, i)));

// A pose turned by a rotation of the world about a point.
function turned(pose, rotation, point) {
  return {
    eye: add(point, apply(rotation, add(pose.eye, point, -1))),
    turn: product(pose.turn, transposed(rotation)),
  };
}

// A pose a share of the way from one to another: along a straight line, by one rotation.
function between(from, to, share) {
  const step = product(transposed(to.turn), from.turn);
  const angle = Math.acos(Math.min(1, Math.max(-1, (step[0] + step[4] + step[8] - 1) / 2)));
  const vector = [step[7] - step[5], step[2] - step[6], step[3] - step[1]];
  const eye = add(from.eye, add(to.eye, from.eye, -1), share);
  if (angle < 1e-6 || Math.hypot(...vector) < 1e-9) return { eye, turn: share < 1 ? from.turn : to.turn };
  return { eye, turn: product(from.turn, transposed(about(unit(vector), share * angle))) };
}

const OPPOSITE = 0.02; // Least angle between the direction of view and the scene's up axis, rad.

// Turns a pose about its focus: `across` about the scene's up axis, `down` about the camera's own x axis.
function orbited(pose, focus, up, across, down) {
  const angle = Math.acos(Math.min(1, Math.max(-1, dot(unit(add(pose.eye, focus, -1)), up))));
  const limited = Math.min(Math.max(angle - down, OPPOSITE), Math.PI - OPPOSITE);
  const tilt = about(unit(axis(pose.turn, 0)), limited - angle);
  return turned(turned(pose, tilt, focus), about(up, across), focus);
}

// The camera to draw with: a pose and the lens of a photo, fitted into a canvas of width x height pixels.
function fitted(pose, lens, width, height) {
  const scale = Math.min(width / lens.width, height / lens.height);
  return {
    turn: pose.turn,
    shift: apply(pose.turn, pose.eye).map((value) => -value),
    focal: [lens.fx * scale, lens.fy * scale],
    centre: [width / 2 + (lens.cx - lens.width / 2) * scale, height / 2 + (lens.cy - lens.height / 2) * scale],
    size: [width, height],
  };
}
