// Package requestid is the stage that gives every request an id, by which it is
// found in the logs of everything it touched.
package requestid

import (
	"context"
	"crypto/rand"

	"github.com/marquee-ads/marquee/services/gateway/stage"
)

// Key is the metadata key, and header, that carries the id in both directions.
const Key = "x-request-id"

const maxLength = 128

// Stage keeps the id the caller sent, if it is well-formed (1 to 128 printable
// ASCII characters), or makes one, and sends it to the service.
func Stage() stage.Stage {
	return func(next stage.Handler) stage.Handler {
		return func(ctx context.Context, call *stage.Call) error {
			sent := call.Metadata[Key]
			if len(sent) == 1 && wellFormed(sent[0]) {
				call.RequestID = sent[0]
			} else {
				call.RequestID = rand.Text()
				call.Metadata[Key] = []string{call.RequestID}
			}
			return next(ctx, call)
		}
	}
}

func wellFormed(id string) bool {
	if id == "" || len(id) > maxLength {
		return false
	}
	for i := range len(id) {
		if id[i] <= ' ' || id[i] > '~' {
			return false
		}
	}
	return true
}
