// Math.random() of Node from the kernel: V8 cannot be told to seed its own anew.
//
//     node --require ./reseed.cjs server.js
//
// The functions of node:crypto draw from OpenSSL: see reseed.c.
const fs = require('node:fs');

const urandom = fs.openSync('/dev/urandom');
const pool = new BigUint64Array(1);

Math.random = () => {
  fs.readSync(urandom, pool);
  return Number(pool[0] >> 11n) / 2 ** 53;
};
