package mesh

import (
	"time"

	"github.com/marquee-ads/marquee/platform/fault"
)

// The reasons of the errors that this package returns.
const (
	// ReasonDenied: no intention lets the peer make this call (PERMISSION_DENIED).
	ReasonDenied = "MESH_DENIED"
	// ReasonNotReady: certificates or intentions have not arrived from the
	// Consul agent yet, so nobody is let in (UNAVAILABLE).
	ReasonNotReady = "MESH_NOT_READY"
	// ReasonNoIdentity: the call did not come over a mesh connection
	// (UNAUTHENTICATED).
	ReasonNoIdentity = "MESH_NO_IDENTITY"
	// ReasonUnreachable: no instance of the service could be connected to
	// (UNAVAILABLE).
	ReasonUnreachable = "MESH_UNREACHABLE"
)

func denied(source, destination string) *fault.Error {
	e := fault.New(fault.PermissionDenied, ReasonDenied, "the mesh does not allow %s to call this on %s", source, destination)
	e.Meta = map[string]string{"source": source, "destination": destination}
	return e
}

func notReady(waitingFor string) *fault.Error {
	// Soon, because another instance may be ready.
	return fault.New(fault.Unavailable, ReasonNotReady, "the mesh is not ready: %s", waitingFor).WithRetryAfter(100 * time.Millisecond)
}

func noIdentity() *fault.Error {
	return fault.New(fault.Unauthenticated, ReasonNoIdentity, "this call did not come over the mesh")
}

func unreachable(service string, cause error) *fault.Error {
	return fault.New(fault.Unavailable, ReasonUnreachable, "no instance of %s can be reached", service).Because(cause)
}
