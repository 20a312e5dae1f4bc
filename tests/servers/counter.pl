#!/usr/bin/perl
# A server as perl has them: a loop of select, handlers of signals, a child that computes
# at the other end of a socket pair.
use strict;
use warnings;
use Digest::SHA qw(sha256_hex);
use IO::Handle;
use IO::Select;
use IO::Socket::INET;
use Socket;
use Time::HiRes qw(setitimer ITIMER_REAL);

my ($count, $ticks, %said) = (0, 0);
socketpair(my $mine, my $its, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die;
$_->autoflush(1) for $mine, $its;
my $child = fork // die;
if (!$child) {
    close $mine;
    my $sum = 0;
    while (my $line = <$its>) { $sum += $line; print $its "$sum\n"; }
    exit 0;
}
close $its;
$SIG{ALRM} = sub { $ticks++ };
setitimer(ITIMER_REAL, 0.01, 0.01);
my $listener = IO::Socket::INET->new(
    LocalAddr => '127.0.0.1', LocalPort => $ARGV[0], Listen => 64, ReuseAddr => 1) or die;
my $select = IO::Select->new($listener);
while (1) {
    for my $socket ($select->can_read) {
        if ($socket == $listener) { $select->add($listener->accept // next); next; }
        my $request = <$socket> // '';
        $select->remove($socket);
        print $socket "HTTP/1.0 200 OK\r\n\r\n", answer($request =~ m{^GET (\S+)} ? $1 : '');
        close $socket;
    }
}

sub answer {
    my $path = shift;
    return $ticks if $path eq '/ticks';
    if ($path eq '/add') { $count++; $said{$count} = sha256_hex($count); }
    # What the child has summed up is its own.
    print $mine $path eq '/add' ? "$count\n" : "0\n";
    chomp(my $sum = <$mine>);
    return "$count $sum " . sha256_hex(join ',', map { "$_=$said{$_}" } sort keys %said);
}
