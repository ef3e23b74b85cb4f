// Sorts the Gaussians front to back in a worker, so that the page stays responsive.

function sortingWorker() {
  let positions, keys, indices, spare, spareKeys;
  const counts = new Uint32Array(65536);
  const asFloat = new Float32Array(1), asBits = new Uint32Array(asFloat.buffer);

  // Two passes of a counting sort over the 32 bits of the depth: the order of positive floats is that of their bits.
  // Equal depths keep the order of the indices.
  function pass(from, fromIndices, to, toIndices, count, shift) {
    counts.fill(0);
    for (let i = 0; i < count; i++) counts[(from[i] >>> shift) & 65535]++;
    for (let i = 0, sum = 0; i < 65536; i++) {
      const here = counts[i];
      counts[i] = sum;
      sum += here;
    }
    for (let i = 0; i < count; i++) {
      const place = counts[(from[i] >>> shift) & 65535]++;
      to[place] = from[i];
      toIndices[place] = fromIndices[i];
    }
  }

  self.onmessage = ({ data }) => {
    if (data.positions) {
      positions = data.positions;
      const count = positions.length / 3;
      [keys, indices, spare, spareKeys] = [0, 0, 0, 0].map(() => new Uint32Array(count));
      return;
    }
    const [a, b, c, d] = data.row;
    let seen = 0;
    for (let i = 0, at = 0; at < positions.length; i++, at += 3) {
      asFloat[0] = a * positions[at] + b * positions[at + 1] + c * positions[at + 2] + d;
      if (!(asFloat[0] >= data.near)) continue;
      keys[seen] = asBits[0];
      indices[seen++] = i;
    }
    pass(keys, indices, spareKeys, spare, seen, 0);
    pass(spareKeys, spare, keys, indices, seen, 16);
    const order = indices.slice(0, seen);
    self.postMessage({ order, id: data.id }, [order.buffer]);
  };
}

// Calls `sorted(order)` with a new order whenever the camera's depth axis has changed.
function makeSorter(positions, near, sorted) {
  const url = URL.createObjectURL(new Blob([`(${sortingWorker})()`], { type: "text/javascript" }));
  const worker = new Worker(url);
  let busy = false, wanted = null, last = "";
  worker.postMessage({ positions });
  worker.onmessage = ({ data }) => {
    busy = false;
    sorted(data.order, data.id);
    next();
  };
  function next() {
    if (busy || !wanted) return;
    busy = true;
    worker.postMessage({ ...wanted, near });
    wanted = null;
  }
  return (row, id) => {
    if (row.join() === last) return false;
    last = row.join();
    wanted = { row, id };
    next();
    return true;
  };
}
