// Reads a .sog file (version 2): a zip file of a meta.json and lossless WebP images. Returns flat arrays, one row for
// each Gaussian.

function unzip(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let end = bytes.length - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw new Error("the splat in this page is damaged");
  const files = new Map();
  let at = view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left > 0; left--) {
    const size = view.getUint32(at + 24, true), nameLength = view.getUint16(at + 28, true);
    const local = view.getUint32(at + 42, true);
    const name = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + nameLength));
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    files.set(name, bytes.subarray(start, start + size));
    at += 46 + nameLength + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
  }
  return files;
}

// The RGBA bytes of a WebP image as they were written. A 2D canvas would multiply them by alpha.
async function imageBytes(gl, file) {
  const options = { premultiplyAlpha: "none", colorSpaceConversion: "none" };
  const bitmap = await createImageBitmap(new Blob([file], { type: "image/webp" }), options);
  const { width, height } = bitmap;
  const texture = gl.createTexture(), frame = gl.createFramebuffer();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  bitmap.close();
  gl.bindFramebuffer(gl.FRAMEBUFFER, frame);
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  const bytes = new Uint8Array(4 * width * height);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
  gl.bindFramebuffer(gl.FRAMEBUFFER, null);
  gl.deleteFramebuffer(frame);
  gl.deleteTexture(texture);
  return { bytes, width, height };
}

async function readSplat(gl, content) {
  const files = unzip(content);
  const meta = JSON.parse(new TextDecoder().decode(files.get("meta.json")));
  const read = async (entry) => {
    const images = [];
    for (const name of entry.files) images.push(await imageBytes(gl, files.get(name)));
    return images;
  };
  const count = meta.count;
  const [low, high] = await read(meta.means), [scales] = await read(meta.scales);
  const [quats] = await read(meta.quats), [sh0] = await read(meta.sh0);
  const { mins, maxs } = meta.means, sizes = meta.scales.codebook.map(Math.exp);
  const positions = new Float32Array(3 * count), covariances = new Float32Array(6 * count);
  const colours = new Float32Array(4 * count);
  for (let i = 0; i < count; i++) {
    for (let axis = 0; axis < 3; axis++) {
      const step = low.bytes[4 * i + axis] + 256 * high.bytes[4 * i + axis];
      const value = mins[axis] + step * (maxs[axis] - mins[axis]) / 65535;
      positions[3 * i + axis] = Math.sign(value) * Math.expm1(Math.abs(value));
      colours[4 * i + axis] = meta.sh0.codebook[sh0.bytes[4 * i + axis]];
    }
    colours[4 * i + 3] = sh0.bytes[4 * i + 3] / 255;
    const scale = [0, 1, 2].map((axis) => sizes[scales.bytes[4 * i + axis]]);
    covariances.set(covariance(rotation(quats.bytes, 4 * i), scale), 6 * i);
  }
  const splat = { count, positions, covariances, colours, antialiased: meta.antialias === true, degree: 0 };
  if (meta.shN) {
    const [centroids, labels] = await read(meta.shN);
    const coefficients = (meta.shN.bands + 1) ** 2 - 1;
    const palette = new Float32Array(4 * centroids.width * centroids.height);
    for (let i = 0; i < palette.length; i++) if (i % 4 < 3) palette[i] = meta.shN.codebook[centroids.bytes[i]];
    const labelled = new Uint32Array(count);
    for (let i = 0; i < count; i++) labelled[i] = labels.bytes[4 * i] + 256 * labels.bytes[4 * i + 1];
    Object.assign(splat, {
      degree: meta.shN.bands, coefficients, palette, labels: labelled,
      paletteWidth: centroids.width, paletteHeight: centroids.height,
    });
  }
  return splat;
}

// The unit quaternion w, x, y, z of a pixel: three components and the index of the largest.
function rotation(bytes, at) {
  const largest = Math.max(bytes[at + 3], 252) - 252, q = [0, 0, 0, 0];
  let sum = 0;
  for (let i = 0, next = at; i < 4; i++) {
    if (i === largest) continue;
    q[i] = (bytes[next++] / 127.5 - 1) * Math.SQRT1_2;
    sum += q[i] * q[i];
  }
  q[largest] = Math.sqrt(Math.max(0, 1 - sum));
  const length = Math.hypot(...q);
  return q.map((value) => value / length);
}

// The upper triangle xx, xy, xz, yy, yz, zz of R S S R^T.
function covariance([w, x, y, z], [a, b, c]) {
  const m = [
    (1 - 2 * (y * y + z * z)) * a, 2 * (x * y - w * z) * b, 2 * (x * z + w * y) * c,
    2 * (x * y + w * z) * a, (1 - 2 * (x * x + z * z)) * b, 2 * (y * z - w * x) * c,
    2 * (x * z - w * y) * a, 2 * (y * z + w * x) * b, (1 - 2 * (x * x + y * y)) * c,
  ];
  const dot = (i, j) => m[3 * i] * m[3 * j] + m[3 * i + 1] * m[3 * j + 1] + m[3 * i + 2] * m[3 * j + 2];
  return [dot(0, 0), dot(0, 1), dot(0, 2), dot(1, 1), dot(1, 2), dot(2, 2)];
}
