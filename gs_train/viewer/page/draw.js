// Draws the splat with WebGL2: the function of gs_train's rasterizers, with one quad for each Gaussian, front to back.

const NEAR = 0.01;
const TEXELS = 4; // of a Gaussian: position and opacity, covariance (2), colour and palette entry
const TEXTURE_WIDTH = 4096;
const BATCH = 256; // Gaussians of an instance: software WebGL is slow with many small instances.

const VERTEX = `#version 300 es
precision highp float;
precision highp int;
uniform highp sampler2D gaussians, palette;
uniform mat3 turn;
uniform vec3 shift, eye;
uniform vec2 focal, centre, size;
uniform bool antialiased;
uniform int degree, count;
uniform highp usampler2D order;
flat out vec2 middle;
flat out vec3 conic;
flat out vec4 colour;

const float C1 = 0.4886025119029199;
vec3 radiance(vec3 dc, int entry, vec3 d) {
  vec3 sum = 0.28209479177387814 * dc;
  if (degree > 0) {
    int count = (degree + 1) * (degree + 1) - 1;
    ivec2 at = ivec2((entry % 64) * count, entry / 64);
    #define SH(k) texelFetch(palette, at + ivec2(k, 0), 0).rgb
    float x = d.x, y = d.y, z = d.z;
    sum += C1 * (-y * SH(0) + z * SH(1) - x * SH(2));
    if (degree > 1) {
      float xx = x * x, yy = y * y, zz = z * z;
      sum += 1.0925484305920792 * x * y * SH(3) - 1.0925484305920792 * y * z * SH(4)
        + 0.31539156525252005 * (2.0 * zz - xx - yy) * SH(5) - 1.0925484305920792 * x * z * SH(6)
        + 0.5462742152960396 * (xx - yy) * SH(7);
      if (degree > 2)
        sum += -0.5900435899266435 * y * (3.0 * xx - yy) * SH(8) + 2.890611442640554 * x * y * z * SH(9)
          - 0.4570457994644658 * y * (4.0 * zz - xx - yy) * SH(10)
          + 0.3731763325901154 * z * (2.0 * zz - 3.0 * xx - 3.0 * yy) * SH(11)
          - 0.4570457994644658 * x * (4.0 * zz - xx - yy) * SH(12)
          + 1.445305721320277 * z * (xx - yy) * SH(13) - 0.5900435899266435 * x * (xx - 3.0 * yy) * SH(14);
    }
  }
  return max(sum + 0.5, 0.0);
}

void main() {
  gl_Position = vec4(2.0, 2.0, 2.0, 1.0);
  int nth = gl_InstanceID * ${BATCH} + gl_VertexID / 4;
  if (nth >= count) return;
  uint index = texelFetch(order, ivec2(nth % ${TEXTURE_WIDTH}, nth / ${TEXTURE_WIDTH}), 0).r;
  int texel = int(index) * ${TEXELS};
  ivec2 at = ivec2(texel % ${TEXTURE_WIDTH}, texel / ${TEXTURE_WIDTH});
  vec4 place = texelFetch(gaussians, at, 0), upper = texelFetch(gaussians, at + ivec2(1, 0), 0);
  vec4 lower = texelFetch(gaussians, at + ivec2(2, 0), 0), dc = texelFetch(gaussians, at + ivec2(3, 0), 0);
  vec3 seen = turn * place.xyz + shift;
  if (seen.z < ${NEAR}) return;
  mat3 spread = mat3(upper.x, upper.y, upper.z, upper.y, upper.w, lower.x, upper.z, lower.x, lower.y);
  // The Jacobian is evaluated at most 0.3 half images outside the image.
  vec2 margin = 0.15 * size / focal;
  vec2 limited = clamp(seen.xy / seen.z, -centre / focal - margin, (size - centre) / focal + margin) * seen.z;
  mat3x2 jacobian = mat3x2(focal.x / seen.z, 0.0, 0.0, focal.y / seen.z,
    -focal.x * limited.x / (seen.z * seen.z), -focal.y * limited.y / (seen.z * seen.z));
  mat3x2 whole = jacobian * turn;
  mat2 flat2 = whole * spread * transpose(whole);
  float before = flat2[0][0] * flat2[1][1] - flat2[0][1] * flat2[0][1];
  float xx = flat2[0][0] + 0.3, yy = flat2[1][1] + 0.3, xy = flat2[0][1];
  float det = xx * yy - xy * xy;
  if (!(det > 0.0)) return;
  float opacity = place.w * (antialiased ? sqrt(max(0.0, before / det)) : 1.0);
  if (opacity < 1.0 / 255.0) return;
  float extent = min(3.33, sqrt(2.0 * log(255.0 * opacity)));
  middle = focal * seen.xy / seen.z + centre;
  vec2 radius = ceil(extent * sqrt(vec2(xx, yy)));
  if (any(lessThanEqual(middle + radius, vec2(0.0))) || any(greaterThanEqual(middle - radius, size))) return;
  conic = vec3(yy, -xy, xx) / det;
  colour = vec4(radiance(dc.rgb, int(dc.w), normalize(place.xyz - eye)), opacity);
  // A quad along the axes of the ellipse, half a pixel larger than it.
  float half_sum = 0.5 * (xx + yy), root = sqrt(max(0.0, half_sum * half_sum - det));
  vec2 axis = abs(xy) > 1e-9 ? normalize(vec2(xy, half_sum + root - xx)) : (xx >= yy ? vec2(1.0, 0.0) : vec2(0.0, 1.0));
  vec2 lengths = extent * sqrt(vec2(half_sum + root, max(half_sum - root, 0.0))) + 0.5;
  vec2 corner = 2.0 * vec2(gl_VertexID & 1, (gl_VertexID >> 1) & 1) - 1.0;
  vec2 pixel = middle + corner.x * lengths.x * axis + corner.y * lengths.y * vec2(-axis.y, axis.x);
  gl_Position = vec4(2.0 * pixel.x / size.x - 1.0, 1.0 - 2.0 * pixel.y / size.y, 0.0, 1.0);
}`;

const FRAGMENT = `#version 300 es
precision highp float;
uniform vec2 size;
flat in vec2 middle;
flat in vec3 conic;
flat in vec4 colour;
out vec4 result;
void main() {
  vec2 d = middle - vec2(gl_FragCoord.x, size.y - gl_FragCoord.y);
  float sigma = 0.5 * (conic.x * d.x * d.x + conic.z * d.y * d.y) + conic.y * d.x * d.y;
  float alpha = min(0.999, colour.a * exp(-sigma));
  if (sigma < 0.0 || alpha < 1.0 / 255.0) discard;
  result = vec4(colour.rgb * alpha, alpha);
}`;

const FINAL_VERTEX = `#version 300 es
void main() { gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0.0, 1.0); }`;

const FINAL_FRAGMENT = `#version 300 es
precision highp float;
uniform highp sampler2D blended;
uniform vec3 background;
uniform vec2 share;
out vec4 result;
void main() {
  vec4 sum = texelFetch(blended, ivec2(gl_FragCoord.xy * share), 0);
  result = vec4(sum.rgb + (1.0 - sum.a) * background, 1.0);
}`;

function program(gl, vertex, fragment) {
  const made = gl.createProgram();
  for (const [type, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(type);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
  const uniforms = {};
  for (let i = gl.getProgramParameter(made, gl.ACTIVE_UNIFORMS) - 1; i >= 0; i--) {
    const { name } = gl.getActiveUniform(made, i);
    uniforms[name] = gl.getUniformLocation(made, name);
  }
  return { made, uniforms };
}

// An unfiltered texture: WebGL2 reads textures of floats as black if they have a filter.
function plainTexture(gl) {
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.NEAREST);
  return texture;
}

function floatTexture(gl, width, height, values) {
  const texture = plainTexture(gl);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA32F, width, height, 0, gl.RGBA, gl.FLOAT, values);
  return texture;
}

function packed(splat) {
  const rows = Math.max(1, Math.ceil(splat.count * TEXELS / TEXTURE_WIDTH));
  const values = new Float32Array(4 * TEXTURE_WIDTH * rows);
  for (let i = 0; i < splat.count; i++) {
    const at = 4 * TEXELS * i;
    values.set(splat.positions.subarray(3 * i, 3 * i + 3), at);
    values[at + 3] = splat.colours[4 * i + 3];
    values.set(splat.covariances.subarray(6 * i, 6 * i + 6), at + 4);
    values.set(splat.colours.subarray(4 * i, 4 * i + 3), at + 12);
    values[at + 15] = splat.labels ? splat.labels[i] : 0;
  }
  return { values, rows };
}

// Returns draw(camera, background, share) and setOrder(order). A camera has turn (row-major world-to-camera rotation),
// shift, focal, centre and size in pixels of the canvas; share below 1 draws fewer pixels.
function contextOf(canvas) {
  const gl = canvas.getContext("webgl2", { antialias: false, alpha: false });
  if (gl) return gl;
  throw new Error("This browser has no WebGL2, which draws the splat. Try another browser, or gs-train view --render server.");
}

function makeRenderer(gl, splat) {
  const floats = gl.getExtension("EXT_color_buffer_float");
  const format = floats && gl.getExtension("EXT_float_blend") ? gl.RGBA32F : floats ? gl.RGBA16F : gl.RGBA8;
  const { values, rows } = packed(splat);
  if (rows > gl.getParameter(gl.MAX_TEXTURE_SIZE)) throw new Error("this splat is too large for your graphics card");
  const gaussians = floatTexture(gl, TEXTURE_WIDTH, rows, values);
  const palette = splat.degree
    ? floatTexture(gl, splat.paletteWidth, splat.paletteHeight, splat.palette) : floatTexture(gl, 1, 1, null);
  const splats = program(gl, VERTEX, FRAGMENT), final = program(gl, FINAL_VERTEX, FINAL_FRAGMENT);
  const order = plainTexture(gl), frame = gl.createFramebuffer();
  gl.texStorage2D(gl.TEXTURE_2D, 1, gl.R32UI, TEXTURE_WIDTH, Math.max(1, Math.ceil(splat.count / TEXTURE_WIDTH)));
  let count = 0, target = null, targetSize = "";

  // Two triangles for the four corners of each Gaussian.
  const corners = new Uint16Array(6 * BATCH).map((_, i) => 4 * Math.floor(i / 6) + [0, 1, 2, 2, 1, 3][i % 6]);
  gl.bindVertexArray(gl.createVertexArray());
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
  gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, corners, gl.STATIC_DRAW);

  function useTarget(width, height) {
    if (targetSize === `${width} ${height}`) return;
    gl.deleteTexture(target);
    target = plainTexture(gl);
    gl.texStorage2D(gl.TEXTURE_2D, 1, format, width, height);
    gl.bindFramebuffer(gl.FRAMEBUFFER, frame);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, target, 0);
    targetSize = `${width} ${height}`;
  }

  return {
    setOrder(indices) {
      count = indices.length;
      gl.bindTexture(gl.TEXTURE_2D, order);
      const rows = Math.floor(count / TEXTURE_WIDTH), rest = count % TEXTURE_WIDTH;
      const upload = (row, width, height) => gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, row, width, height, gl.RED_INTEGER,
        gl.UNSIGNED_INT, indices, row * TEXTURE_WIDTH);
      if (rows) upload(0, TEXTURE_WIDTH, rows);
      if (rest) upload(rows, rest, 1);
    },
    draw(camera, background, share) {
      const [width, height] = camera.size.map((length) => Math.max(1, Math.round(share * length)));
      const scale = [width / camera.size[0], height / camera.size[1]];
      useTarget(width, height);
      gl.bindFramebuffer(gl.FRAMEBUFFER, frame);
      gl.viewport(0, 0, width, height);
      gl.clearColor(0, 0, 0, 0);
      gl.clear(gl.COLOR_BUFFER_BIT);
      gl.useProgram(splats.made);
      const u = splats.uniforms, r = camera.turn, t = camera.shift;
      gl.uniformMatrix3fv(u.turn, true, r);
      gl.uniform3fv(u.shift, t);
      gl.uniform3fv(u.eye, [0, 1, 2].map((i) => -(r[i] * t[0] + r[3 + i] * t[1] + r[6 + i] * t[2])));
      gl.uniform2f(u.focal, camera.focal[0] * scale[0], camera.focal[1] * scale[1]);
      gl.uniform2f(u.centre, camera.centre[0] * scale[0], camera.centre[1] * scale[1]);
      gl.uniform2f(u.size, width, height);
      gl.uniform1i(u.antialiased, splat.antialiased);
      gl.uniform1i(u.degree, splat.degree);
      gl.uniform1i(u.gaussians, 0);
      gl.uniform1i(u.count, count);
      gl.uniform1i(u.palette, 1);
      gl.uniform1i(u.order, 2);
      gl.activeTexture(gl.TEXTURE2);
      gl.bindTexture(gl.TEXTURE_2D, order);
      gl.activeTexture(gl.TEXTURE1);
      gl.bindTexture(gl.TEXTURE_2D, palette);
      gl.activeTexture(gl.TEXTURE0);
      gl.bindTexture(gl.TEXTURE_2D, gaussians);
      gl.enable(gl.BLEND);
      gl.blendFunc(gl.ONE_MINUS_DST_ALPHA, gl.ONE);
      gl.drawElementsInstanced(gl.TRIANGLES, corners.length, gl.UNSIGNED_SHORT, 0, Math.ceil(count / BATCH));
      gl.disable(gl.BLEND);
      gl.bindFramebuffer(gl.FRAMEBUFFER, null);
      gl.viewport(0, 0, ...camera.size);
      gl.useProgram(final.made);
      gl.bindTexture(gl.TEXTURE_2D, target);
      gl.uniform1i(final.uniforms.blended, 0);
      gl.uniform3fv(final.uniforms.background, background);
      gl.uniform2fv(final.uniforms.share, scale);
      gl.drawArrays(gl.TRIANGLES, 0, 3);
    },
  };
}
