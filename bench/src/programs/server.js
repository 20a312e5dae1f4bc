// A counter behind node's http server: /ping answers, /count counts.
const http = require('http');
const [port, nonce] = process.argv.slice(2);
let count = 0;

http.createServer((request, response) => {
  if (request.url === '/count') count += 1;
  const body = `${nonce} ${count}`;
  response.writeHead(200, { 'Content-Length': body.length, Connection: 'close' });
  response.end(body);
}).listen(Number(port), '127.0.0.1');
