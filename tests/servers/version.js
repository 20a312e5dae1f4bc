// Says which version it is, and how often it was asked: version.js PORT VERSION [PORT]
const [port, version, ...more] = process.argv.slice(2);
let count = 0;
for (const each of [port, ...more]) {
  require('http')
    .createServer((request, response) => {
      count += 1;
      response.end(`${version} ${count}\n`);
    })
    .listen(Number(each), '127.0.0.1');
}
