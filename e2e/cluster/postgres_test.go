package cluster

import (
	"context"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/tools"
)

// postgresOnMachines says where machines have Postgres.
type postgresOnMachines struct {
	binDir string
	files  map[string]string // what they must be shown
	chroot map[string]string // what a task must see of the machine
}

var library = regexp.MustCompile(`(/\S+) \(0x`)

// findPostgres takes the host's Postgres, or the checkout's own. A real machine
// shows tasks all of its libraries; those of a developer's host would fill the
// disks here, so that tasks see only what Postgres loads.
func findPostgres(t *testing.T, ctx context.Context) postgresOnMachines {
	t.Helper()
	binDir, err := tools.Find(ctx, tools.Postgres)
	require.NoError(t, err)
	p := postgresOnMachines{binDir: binDir, chroot: map[string]string{}}
	see := func(path string) { p.chroot[path] = path }
	modules, err := filepath.Glob(filepath.Join(filepath.Dir(binDir), "lib", "*.so"))
	require.NoError(t, err)
	loaded := []string{"/bin/sh"}
	for _, program := range []string{"postgres", "initdb", "pg_ctl"} {
		loaded = append(loaded, filepath.Join(binDir, program))
	}
	inUsr := strings.HasPrefix(binDir, "/usr/")
	if !inUsr {
		p.binDir = "/opt/postgres/bin"
		p.files = map[string]string{"/opt/postgres": filepath.Dir(binDir)}
		see("/opt/postgres")
	} else {
		see("/usr/share/postgresql")
		see("/usr/share/zoneinfo")
	}
	for _, file := range append(loaded, modules...) {
		// The compiler for queries loads 100 MB, and Postgres does without.
		if strings.Contains(file, "llvmjit") {
			continue
		}
		if inUsr || file == "/bin/sh" {
			see(file)
		}
		out, err := exec.CommandContext(ctx, "ldd", file).Output()
		require.NoError(t, err, "ldd %s", file)
		for _, found := range library.FindAllStringSubmatch(string(out), -1) {
			if inUsr || !strings.HasPrefix(found[1], filepath.Dir(binDir)) {
				see(found[1])
			}
		}
	}
	return p
}
