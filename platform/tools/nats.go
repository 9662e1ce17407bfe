package tools

import (
	"path"
	"regexp"
)

// NatsServer is the NATS server, for Find and Ensure.
const NatsServer = "nats-server"

func natsServer() goTool {
	return goTool{module: NatsServer, version: []string{"--version"}, cold: "30 seconds"}
}

var majorVersion = regexp.MustCompile(`^v[0-9]+$`)

// programOf is what a main package's program is called: its folder, or the one
// above it where that is the major version of a module.
func programOf(importPath string) string {
	if majorVersion.MatchString(path.Base(importPath)) {
		return path.Base(path.Dir(importPath))
	}
	return path.Base(importPath)
}
