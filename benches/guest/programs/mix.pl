# Hashes, regular expressions, sorting, string building.
use strict;
my $total = 0;
for my $round (1 .. $ARGV[0]) {
    my ($state, %found) = (12345);
    for (1 .. 4000) {
        $state = ($state * 1103515245 + 12345) % 2147483648;
        $found{"w" . $state % 997}++;
    }
    my $text = join " ", sort { $found{$a} <=> $found{$b} || $a cmp $b } keys %found;
    $total++ while $text =~ /w[13579]+\b/g;
    (my $other = $text) =~ s/(\d+)/$1 + 1/ge;
    $total += length $other;
    $total += ord(substr $other, $_ % length $other, 1) for 1 .. 4000;
    my @parts = map { $_ * 3 } grep { $_ & 1 } 1 .. 4000;
    $total += $_ for @parts;
}
print "$total\n";
