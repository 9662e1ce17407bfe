package service

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"runtime/debug"
	"sync"
)

// Version is the running executable's: the first twelve hex digits of its
// SHA-256, which is also the name of its release folder, or the revision it
// was built from where the file cannot be read.
func Version() string { return version() }

var version = sync.OnceValue(func() string {
	if v, err := hashExecutable(); err == nil {
		return v
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				return s.Value[:12]
			}
		}
	}
	return "unknown"
})

func hashExecutable() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", err
	}
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	h := sha256.New()
	if _, err := io.Copy(h, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil))[:12], nil
}

// build is what /version shows.
type build struct {
	Service  string            `json:"service"`
	Instance string            `json:"instance"`
	Version  string            `json:"version"`
	Mode     string            `json:"mode"`
	Build    map[string]string `json:"build"`
}

// buildSettings are the toolchain and, when the build recorded it, the
// revision of the sources.
func buildSettings() map[string]string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return nil
	}
	settings := map[string]string{"go": info.GoVersion, "path": info.Path}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision", "vcs.time", "vcs.modified", "GOOS", "GOARCH":
			settings[s.Key] = s.Value
		}
	}
	return settings
}
