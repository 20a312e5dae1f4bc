// Draws numbers each time it is asked to, by a file: `label=number ...`.
package main

import (
	crand "crypto/rand"
	"fmt"
	"math/rand"
	"os"
	"strings"
	"time"
)

func draw() string {
	var own [16]byte
	if _, err := crand.Read(own[:]); err != nil {
		panic(err)
	}
	return fmt.Sprintf("math=%d crypto=%x", rand.Uint64(), own)
}

func main() {
	place := os.Args[1]
	rand.Seed(time.Now().UnixNano())
	draw()
	os.WriteFile(place+"/ready", nil, 0o644)
	for {
		time.Sleep(10 * time.Millisecond)
		text, _ := os.ReadFile("/run/appshot-instance/name")
		name := strings.TrimSpace(string(text))
		if os.Remove(place+"/ask-"+name) == nil {
			os.WriteFile(place+"/next-"+name, []byte(draw()), 0o644)
			os.Rename(place+"/next-"+name, place+"/drawn-"+name)
		}
	}
}
