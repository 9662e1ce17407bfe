// Package artifacts carries programs from the operator to the machines that run
// them: servers keep them by their contents, a mirror on each client hands them
// to the tasks there.
package artifacts

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"regexp"
)

// Port is where servers and mirrors listen.
const Port = 4700

// DefaultLimit is the size in bytes of the largest artifact: our programs have
// 10 to 30 MB.
const DefaultLimit = 256 << 20

// MirrorAddress is where every client's mirror listens, for its own tasks only.
var MirrorAddress = net.JoinHostPort("127.0.0.1", "4700")

// validName keeps names from meaning anything to a file system.
var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)

// artifact is a program's contents by their SHA-256, in hexadecimal, and name.
type artifact struct{ sum, name string }

func newArtifact(sum, name string) (artifact, error) {
	if raw, err := hex.DecodeString(sum); err != nil || len(raw) != 32 || hex.EncodeToString(raw) != sum {
		return artifact{}, fmt.Errorf("%q is no SHA-256 in lower-case hexadecimal", sum)
	}
	if !validName.MatchString(name) {
		return artifact{}, fmt.Errorf("%q is no name for an artifact: want letters, digits, dots, hyphens and underscores, at most 100 of them", name)
	}
	return artifact{sum, name}, nil
}

func (a artifact) path() string { return "/" + a.sum + "/" + a.name }

// URL is what a job file names: the mirror on the task's own machine.
func (a artifact) URL() string { return "http://" + MirrorAddress + a.path() }

// Errors that callers tell apart.
var (
	// ErrMismatch says that contents do not have the SHA-256 that was named.
	ErrMismatch = errors.New("the contents do not have the SHA-256 that was named")
	// ErrTooLarge says that an artifact is larger than the server takes.
	ErrTooLarge = errors.New("larger than an artifact may be")
)
