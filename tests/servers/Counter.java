import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.util.Arrays;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;

/** An HTTP server whose state lives in memory alone, with a pool of threads and a timer. */
public class Counter {
    static final AtomicLong count = new AtomicLong(), ticks = new AtomicLong();
    static final byte[] data = new byte[20 << 20];

    static void answer(HttpExchange exchange, String text) throws IOException {
        byte[] bytes = text.getBytes();
        exchange.sendResponseHeaders(200, bytes.length);
        exchange.getResponseBody().write(bytes);
        exchange.close();
    }

    public static void main(String[] args) throws IOException {
        for (int i = 0; i < data.length; i++) {
            data[i] = (byte) (i * 7);
        }
        Executors.newScheduledThreadPool(1).scheduleAtFixedRate(ticks::incrementAndGet, 10, 10, TimeUnit.MILLISECONDS);
        InetSocketAddress address = new InetSocketAddress(InetAddress.getByName("127.0.0.1"), Integer.parseInt(args[0]));
        HttpServer server = HttpServer.create(address, 50);
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.createContext("/add", e -> answer(e, "" + count.incrementAndGet()));
        server.createContext("/ticks", e -> answer(e, "" + ticks.get()));
        server.createContext("/", e -> answer(e, count.get() + " " + Arrays.hashCode(data)));
        server.start();
    }
}
