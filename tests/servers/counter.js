// An HTTP server whose state lives in memory alone: a counter, a timer and a buffer.
const http = require('http');
const crypto = require('crypto');

let count = 0, ticks = 0;
const buffer = Buffer.alloc(20 << 20, 'appshot');
setInterval(() => { ticks++; }, 10);

http.createServer((request, response) => {
  if (request.url === '/add') count++;
  if (request.url === '/ticks') return response.end(String(ticks));
  const digest = crypto.createHash('sha256').update(buffer).digest('hex');
  response.end(`${count} ${digest}`);
}).listen(Number(process.argv[2]), '127.0.0.1');
