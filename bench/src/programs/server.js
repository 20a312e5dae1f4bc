// A counter behind node's http server: /ping answers, /count counts, /work fills
// and empties V8's heap.
const http = require('http');
const [port, nonce] = process.argv.slice(2);
let count = 0;
let kept = [];

function work() {
  let length = 0;
  for (let i = 0; i < 300000; i++) {
    const entry = { name: `entry ${i}`, values: [i, i + 1, i + 2] };
    if (i % 8 === 0) kept.push(entry);
    length += entry.name.length;
  }
  if (kept.length > 200000) kept = [];
  return length;
}

http.createServer((request, response) => {
  if (request.url === '/count') count += 1;
  if (request.url === '/work') work();
  const body = `${nonce} ${count}`;
  response.writeHead(200, { 'Content-Length': body.length, Connection: 'close' });
  response.end(body);
}).listen(Number(port), '127.0.0.1');
