// Command train makes the world's eye anew: go generate ./internal/world/eye.
package main

import (
	"flag"
	"fmt"
	"os"

	"ctrloop/internal/catalogue"
	"ctrloop/internal/world/eye"
)

func main() {
	out := flag.String("out", "weights.bin", "file to write")
	n := flag.Int("n", 6000, "pictures to learn from")
	epochs := flag.Int("epochs", 10, "passes over them")
	seed := flag.Uint64("seed", 0x5eed, "seed of pictures and fit; no other part of the project draws from it")
	flag.Parse()
	products := catalogue.Embedded().Products()
	train, fresh := eye.Draw(products, *n, *seed), eye.Draw(products, 1500, *seed+1)
	e := eye.Learn(train, *epochs, *seed)
	fmt.Printf("accuracy: %.4f on its own pictures, %.4f on fresh ones\n", e.Accuracy(train), e.Accuracy(fresh))
	if err := os.WriteFile(*out, e.Encode(), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
