// Says which version it is, and how often it was asked: version.js PORT VERSION
const [port, version] = process.argv.slice(2);
let count = 0;
require('http')
  .createServer((request, response) => {
    count += 1;
    response.end(`${version} ${count}\n`);
  })
  .listen(Number(port), '127.0.0.1');
