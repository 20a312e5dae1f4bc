// A counter behind net/http: /ping answers, /count counts, /work fills and
// empties Go's heap. Built with cgo: only a dynamic program can be preloaded.
package main

import (
	"C"
	"fmt"
	"net/http"
	"os"
	"sync/atomic"
)

var count int64
var kept []map[string][]int

func work() {
	for i := 0; i < 60000; i++ {
		entry := map[string][]int{fmt.Sprint("entry ", i): make([]int, 16+i%64)}
		if i%8 == 0 {
			kept = append(kept, entry)
		}
	}
	if len(kept) > 40000 {
		kept = nil
	}
}

func main() {
	nonce := os.Args[2]
	answer := func(step int64) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, "%s %d", nonce, atomic.AddInt64(&count, step))
		}
	}
	http.HandleFunc("/ping", answer(0))
	http.HandleFunc("/count", answer(1))
	http.HandleFunc("/work", func(w http.ResponseWriter, request *http.Request) {
		work()
		answer(0)(w, request)
	})
	if err := http.ListenAndServe("127.0.0.1:"+os.Args[1], nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
