#!/bin/bash
# DIR: compiles one file again and again until the file `go` is there, then once more; 0 if
# all objects are alike.
cd "$1" || exit 1
for number in {1..60}; do
    echo "unsigned f$number(unsigned *a, unsigned n) { unsigned s = $number;
        for (unsigned i = 0; i < n; i++) { a[i] = a[i] * s + (a[i ^ 1] >> ($number % 31)); s ^= a[i] % (i + $number);
        switch (s % 7) { case 0: s += i; break; case 1: s *= 3; break; case 2: s = ~s; break; case 5: s -= a[0]; } }
        return s; }"
done >source.c
compile() { gcc -O3 -pipe -c source.c -o "$1" && echo "$1" >>compiled; }
for ((number = 0; ; number++)); do
    compile "object-$number" || exit 2
    [ -e go ] && break
done
compile undisturbed || exit 3
for object in object-*; do cmp "$object" undisturbed || exit 4; done
