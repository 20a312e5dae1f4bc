import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicLong;

/** A counter behind the JDK's HttpServer: /ping answers, /count counts. */
public final class Server {
    private static final AtomicLong COUNT = new AtomicLong();

    public static void main(String[] args) throws IOException {
        String nonce = args[1];
        HttpServer server =
            HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(args[0])), 0);
        server.createContext("/ping", exchange -> answer(exchange, nonce, COUNT.get()));
        server.createContext("/count", exchange -> answer(exchange, nonce, COUNT.incrementAndGet()));
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.start();
    }

    private static void answer(HttpExchange exchange, String nonce, long count) throws IOException {
        byte[] body = (nonce + " " + count).getBytes();
        exchange.getResponseHeaders().set("Connection", "close");
        exchange.sendResponseHeaders(200, body.length);
        exchange.getResponseBody().write(body);
        exchange.close();
    }
}
