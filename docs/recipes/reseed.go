// Renews the numbers of math/rand when the app has been restored: put this file beside
// the program's own, and start the app with --after-restore signal:USR2.
//
// crypto/rand needs nothing: it asks the kernel each time.
package main

import (
	crand "crypto/rand"
	"encoding/binary"
	"math/rand"
	"os"
	"os/signal"
	"syscall"
)

func init() {
	restored := make(chan os.Signal, 1)
	signal.Notify(restored, syscall.SIGUSR2)
	go func() {
		for range restored {
			var seed [8]byte
			if _, err := crand.Read(seed[:]); err == nil {
				rand.Seed(int64(binary.LittleEndian.Uint64(seed[:])))
			}
		}
	}()
}
