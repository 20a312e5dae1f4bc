import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicLong;

/** A counter behind the JDK's HttpServer: /ping answers, /count counts, /work fills the heap. */
public final class Server {
    private static final AtomicLong COUNT = new AtomicLong();
    private static List<String> kept = new ArrayList<>();

    public static void main(String[] args) throws IOException {
        String nonce = args[1];
        HttpServer server =
            HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(args[0])), 0);
        server.createContext("/ping", exchange -> answer(exchange, nonce, COUNT.get()));
        server.createContext("/count", exchange -> answer(exchange, nonce, COUNT.incrementAndGet()));
        server.createContext("/work", exchange -> {
            work();
            answer(exchange, nonce, COUNT.get());
        });
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.start();
    }

    private static synchronized void work() {
        for (int i = 0; i < 400000; i++) {
            String entry = "entry " + i + new String(new char[i % 64]);
            if (i % 8 == 0) {
                kept.add(entry);
            }
        }
        if (kept.size() > 300000) {
            kept = new ArrayList<>();
        }
    }

    private static void answer(HttpExchange exchange, String nonce, long count) throws IOException {
        byte[] body = (nonce + " " + count).getBytes();
        exchange.getResponseHeaders().set("Connection", "close");
        exchange.sendResponseHeaders(200, body.length);
        exchange.getResponseBody().write(body);
        exchange.close();
    }
}
