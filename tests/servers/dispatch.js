// What a dispatcher has behind it: a server with an answer for every trial.
// node dispatch.js ADDRESS:PORT|PATH [TEXT]
const http = require("http");
const os = require("os");
const [, , place, said] = process.argv;
let count = 0, busy = 0, peak = 0, aborted = 0;
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

const server = http.createServer(async (req, res) => {
  const url = new URL(req.url, "http://any");
  const number = (name) => Number(url.searchParams.get(name) || 0);
  busy += 1;
  peak = Math.max(peak, busy);
  res.on("close", () => {
    busy -= 1;
    if (!res.writableFinished) aborted += 1;
  });
  switch (url.pathname.replace(/^\/api/, "")) {
    case "/count":
      if (req.method === "POST") count += 1;
      return res.end(String(count));
    case "/busy": // Besides this one.
      return res.end(String(busy - 1));
    case "/peak":
      return res.end(String(peak));
    case "/aborted":
      return res.end(String(aborted));
    case "/host": // Meanwhile it does nothing else, and accepts nobody.
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, number("ms"));
      return res.end(os.hostname());
    case "/slow":
      await sleep(number("ms"));
      return res.end("slow");
    case "/head": {
      const { method, url, httpVersion, rawHeaders } = req;
      res.setHeader("content-type", "application/json");
      return res.end(JSON.stringify({ said, method, url, httpVersion, rawHeaders }));
    }
    case "/timing":
      res.setHeader("server-timing", "db;dur=1.5");
      res.setHeader("connection", "keep-alive, x-private");
      res.setHeader("x-private", "1");
      return res.end("timed");
    case "/echo":
      return req.pipe(res);
    case "/stream":
      for (let i = 0; i < number("n"); i++) {
        res.write(`${i}\n`);
        await sleep(number("ms"));
      }
      return res.end();
    case "/last": // Answers, and hangs up without having said so.
      res.on("finish", () => req.socket.destroySoon());
      return res.end("last");
    case "/drop":
      return req.socket.destroy();
    case "/cut":
      res.writeHead(200, { "content-length": "100" });
      res.write("part");
      await sleep(50);
      return req.socket.destroy();
    case "/garbage":
      return req.socket.end("this is no HTTP\r\n\r\n");
    default:
      res.statusCode = 404;
      return res.end(said || "nothing");
  }
});
// Any protocol: what comes in goes back.
server.on("upgrade", (req, socket, head) => {
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ${req.headers.upgrade}\r\n\r\n`);
  socket.write(head);
  socket.pipe(socket);
});
const listen = place.startsWith("/") ? { path: place } : { host: place.split(":")[0], port: Number(place.split(":")[1]) };
server.listen({ ...listen, backlog: 5 });
