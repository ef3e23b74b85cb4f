// Reads a splat file with a loader of three.js and prints its arrays as JSON.
//
//     node three_splats.mjs FOLDER_OF_THREE FILE {splat,spz,glb}

import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const [root, file, kind] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(`${root}/examples/jsm/loaders/${name}.js`).href);
const bytes = readFileSync(file);
const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
let geometry;
if (kind === 'glb') {
  // The loader expects a browser.
  globalThis.self = globalThis;
  const { GLTFLoader } = await load('GLTFLoader');
  const { GLTFGaussianSplatLoaderExtension } = await load('GLTFGaussianSplatLoaderExtension');
  const loader = new GLTFLoader().register((parser) => new GLTFGaussianSplatLoaderExtension(parser));
  const { scene } = await loader.parseAsync(buffer, '');
  scene.traverse((node) => { if (node.isGaussianSplat) geometry = node.splatGeometry; });
} else {
  const name = kind === 'spz' ? 'SPZLoader' : 'SPLATLoader';
  geometry = await new (await load(name))[name]().parse(buffer);
}
const arrays = Object.entries(geometry.attributes).map(([name, attribute]) => [name, Array.from(attribute.array)]);
console.log(JSON.stringify(Object.fromEntries(arrays)));
