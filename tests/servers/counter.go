// An HTTP server whose state lives in memory alone. Its busy goroutines have to
// be preempted by signals all the time.
package main

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

var count, ticks, spins atomic.Int64

func main() {
	data := make([]byte, 20<<20)
	for i := range data {
		data[i] = byte(i * 7)
	}
	go func() {
		for range time.Tick(10 * time.Millisecond) {
			ticks.Add(1)
		}
	}()
	go func() {
		for {
			x := uint64(1)
			for i := 0; i < 1000000; i++ {
				x = x*6364136223846793005 + 1
			}
			spins.Add(int64(x&1) + 1)
			time.Sleep(20 * time.Millisecond)
		}
	}()
	http.HandleFunc("/add", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, count.Add(1)) })
	http.HandleFunc("/ticks", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, ticks.Load()) })
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "%d %x", count.Load(), sha256.Sum256(data))
	})
	if err := http.ListenAndServe("127.0.0.1:"+os.Args[1], nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
