package stage

import (
	"strings"

	"google.golang.org/grpc/metadata"
)

// Keys of metadata that the gateway itself sets towards services, and strips
// from what clients send.
const (
	// ForwardedFor is the client's address as this gateway saw it.
	ForwardedFor = "x-forwarded-for"
	// ServedBy is the instance that answered, in responses only.
	ServedBy = "x-served-by"
)

// internalPrefix is reserved for what parts of the platform tell each other.
const internalPrefix = "x-marquee-"

// Clean removes from a client's metadata, in place, what a client must not be
// able to say to a service: where the call came from, who answered, and
// whatever belongs to the connection and not to the call.
func Clean(md metadata.MD) {
	for key := range md {
		switch key {
		case ServedBy, ForwardedFor, "forwarded", "x-forwarded-host", "x-forwarded-proto", "x-real-ip",
			":authority", "content-type", "user-agent", "grpc-accept-encoding",
			"connection", "keep-alive", "proxy-authorization", "proxy-authenticate", "upgrade", "host", "te", "trailer":
			delete(md, key)
		default:
			if strings.HasPrefix(key, internalPrefix) {
				delete(md, key)
			}
		}
	}
}
