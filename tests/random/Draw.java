import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.security.SecureRandom;
import java.util.Random;
import java.util.concurrent.ThreadLocalRandom;

/** Draws numbers each time it is asked to, by a file: {@code label=number ...}. */
public class Draw {
    private static final Random RANDOM = new Random();
    private static final SecureRandom SECURE = new SecureRandom();

    private static String draw() {
        return "random=" + RANDOM.nextLong()
            + " math=" + Math.random()
            + " local=" + ThreadLocalRandom.current().nextLong()
            + " fresh=" + Fresh.random().nextLong()
            + " secure=" + SECURE.nextLong();
    }

    public static void main(String[] args) throws Exception {
        Path place = Path.of(args[0]);
        draw();
        Files.createFile(place.resolve("ready"));
        while (true) {
            Thread.sleep(10);
            String name = Files.readString(Path.of("/run/appshot-instance/name")).trim();
            Path ask = place.resolve("ask-" + name);
            if (Files.exists(ask)) {
                Path next = place.resolve("next-" + name);
                Files.writeString(next, draw());
                Files.move(next, place.resolve("drawn-" + name), StandardCopyOption.ATOMIC_MOVE);
                Files.delete(ask);
            }
        }
    }
}
