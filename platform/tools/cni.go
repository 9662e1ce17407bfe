package tools

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/marquee-ads/marquee/platform/files"
)

func cniPlugins() []string {
	return []string{"bridge", "firewall", "host-local", "loopback", "portmap"}
}

// findCNI looks where distributions put the plugins, after the checkout's own.
func findCNI(root string) (string, error) {
	stamp, err := cniStamp(root)
	if err != nil {
		return "", err
	}
	own := filepath.Join(folder(root), CNI)
	if text, err := os.ReadFile(filepath.Join(own, "version")); err == nil && strings.TrimSpace(string(text)) == stamp && holds(own, cniPlugins()...) {
		return own, nil
	}
	for _, dir := range append(filepath.SplitList(os.Getenv("CNI_PATH")), "/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni") {
		if holds(dir, cniPlugins()...) {
			return dir, nil
		}
	}
	return "", fmt.Errorf("CNI plugins: %w: not built yet and not in /opt/cni/bin or /usr/lib/cni", ErrMissing)
}

func cniStamp(root string) (string, error) {
	dir := filepath.Join(root, "tools", CNI)
	return stampOf(filepath.Join(dir, "go.mod"), filepath.Join(dir, "go.sum"))
}

func buildCNI(ctx context.Context, root string, progress Progress) error {
	stamp, err := cniStamp(root)
	if err != nil {
		return err
	}
	out := filepath.Join(folder(root), CNI)
	temp, err := tempBeside(out)
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	if err := os.Mkdir(temp, 0o755); err != nil {
		return fmt.Errorf("build the CNI plugins: %w", err)
	}
	env := GoEnv("GOWORK=off", "GOFLAGS=-trimpath", "CGO_ENABLED=0")
	if err := goBuild(ctx, progress, "building the CNI plugins (about 20 seconds from cold)",
		filepath.Join(root, "tools", CNI), env, "-o", temp+"/", "tool"); err != nil {
		return err
	}
	if err := files.Replace(filepath.Join(temp, "version"), []byte(stamp+"\n"), 0o644); err != nil {
		return err
	}
	return replaceFolder(temp, out)
}

// holds says whether dir has all the programs.
func holds(dir string, programs ...string) bool {
	for _, p := range programs {
		info, err := os.Stat(filepath.Join(dir, p))
		if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			return false
		}
	}
	return dir != ""
}

// replaceFolder puts a finished folder in the place of an older one.
func replaceFolder(temp, out string) error {
	if err := os.RemoveAll(out); err != nil {
		return fmt.Errorf("replace %s: %w", out, err)
	}
	if err := os.Rename(temp, out); err != nil {
		return fmt.Errorf("put %s in place: %w", out, err)
	}
	return nil
}
