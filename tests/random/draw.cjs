// Draws numbers each time it is asked to, by a file: `label=number ...`.
const fs = require('node:fs');
const crypto = require('node:crypto');

const place = process.argv[2];
const draw = () => {
  const words = { math: Math.random(), openssl: crypto.randomBytes(16).toString('hex') };
  return Object.entries(words).map(([label, number]) => `${label}=${number}`).join(' ');
};

draw();
fs.writeFileSync(`${place}/ready`, '');
setInterval(() => {
  const name = fs.readFileSync('/run/appshot-instance/name', 'utf8').trim();
  if (fs.existsSync(`${place}/ask-${name}`)) {
    fs.writeFileSync(`${place}/next-${name}`, draw());
    fs.renameSync(`${place}/next-${name}`, `${place}/drawn-${name}`);
    fs.rmSync(`${place}/ask-${name}`);
  }
}, 10);
