import java.nio.file.Files;
import java.nio.file.Path;
import java.security.SecureRandom;
import java.util.Random;

/**
 * Random numbers that a clone does not share: a new generator in every generation of
 * the app. Instead of {@code new Random()} and {@code Math.random()}; SecureRandom needs
 * it not, it asks the kernel.
 */
final class Fresh {
    private static final Path GENERATION = Path.of("/run/appshot-instance/generation");
    private static String seen = "";
    private static Random random = new Random();

    static synchronized Random random() {
        String now = read();
        if (!now.equals(seen)) {
            random = new Random(new SecureRandom().nextLong());
            seen = now;
        }
        return random;
    }

    private static String read() {
        try {
            return Files.readString(GENERATION);
        } catch (java.io.IOException none) {
            return "";
        }
    }
}
