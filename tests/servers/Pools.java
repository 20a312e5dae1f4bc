import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.*;
import java.util.stream.LongStream;

/** Requests as frameworks have them: a pool that grows, tasks by schedule, futures of futures
 *  on a work-stealing pool, a queue with consumers, a cache under a read-write lock. */
public class Pools {
    static final AtomicLong ticks = new AtomicLong(), consumed = new AtomicLong();
    static final Map<Long, String> cache = new HashMap<>();
    static final java.util.concurrent.locks.ReadWriteLock lock = new java.util.concurrent.locks.ReentrantReadWriteLock();
    static final BlockingQueue<Long> queue = new LinkedBlockingQueue<>(64);
    static final ForkJoinPool stealing = new ForkJoinPool(4);
    static long count;

    public static void main(String[] arguments) throws Exception {
        var scheduled = Executors.newScheduledThreadPool(2);
        scheduled.scheduleAtFixedRate(ticks::incrementAndGet, 0, 10, TimeUnit.MILLISECONDS);
        scheduled.scheduleWithFixedDelay(System::gc, 1, 1, TimeUnit.SECONDS);
        for (int n = 0; n < 3; n++) {
            var consumer = new Thread(Pools::consume, "consumer-" + n);
            consumer.setDaemon(true);
            consumer.start();
        }
        var server = HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[0])), 64);
        server.setExecutor(new ThreadPoolExecutor(4, 32, 60, TimeUnit.SECONDS, new SynchronousQueue<>()));
        server.createContext("/", exchange -> {
            byte[] body = answer(exchange.getRequestURI().getPath()).getBytes(StandardCharsets.UTF_8);
            exchange.getResponseHeaders().set("Connection", "close");
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.start();
    }

    static void consume() {
        try {
            for (;;) consumed.addAndGet(queue.take());
        } catch (InterruptedException e) {
            throw new IllegalStateException(e);
        }
    }

    static String answer(String path) {
        if (path.equals("/ticks")) return Long.toString(ticks.get());
        if (path.equals("/add")) add();
        long all = LongStream.rangeClosed(1, count).sum();
        while (consumed.get() < all) Thread.onSpinWait();
        lock.readLock().lock();
        try {
            var sum = stealing.submit(() -> LongStream.range(0, 200_000).parallel().map(n -> n * count).sum());
            return count + " " + consumed + " " + new TreeMap<>(cache).hashCode() + " " + sum.join();
        } finally {
            lock.readLock().unlock();
        }
    }

    static synchronized void add() {
        long number = ++count;
        var word = CompletableFuture.supplyAsync(() -> Long.toHexString(number * 31), stealing)
            .thenCombineAsync(CompletableFuture.supplyAsync(() -> "-" + number), String::concat, stealing);
        lock.writeLock().lock();
        try {
            cache.put(number, word.join());
            queue.put(number);
        } catch (InterruptedException e) {
            throw new IllegalStateException(e);
        } finally {
            lock.writeLock().unlock();
        }
    }
}
