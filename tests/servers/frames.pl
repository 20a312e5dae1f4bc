# FRAMES|go: so many frames of 160x120 in yuv420p, or one every 15 ms until the file `go` is
# there; how many it were goes to the file `frames`.
use strict;
use warnings;
my ($want) = @ARGV;
my ($size, $seed, $noise) = (160 * 120 * 3 / 2, 1, '');
for (1 .. 60_000) { $seed = ($seed * 1103515245 + 12345) & 0x7fffffff; $noise .= pack 'n', $seed >> 12; }
$noise .= $noise;
binmode STDOUT;
my $number = 0;
while ($want eq 'go' ? !-e 'go' : $number < $want) {
    my $frame = substr $noise, $number * 646 % 120_000, $size;
    # A still half, which the encoder predicts from what came long before.
    substr $frame, 0, 7_000, substr $noise, 0, 7_000;
    syswrite STDOUT, substr($frame, $_ * 1200, 1200) for 0 .. $size / 1200 - 1;
    $number++;
    select undef, undef, undef, 0.015 if $want eq 'go';
}
open my $told, '>', 'frames' or die;
print $told "$number\n";
