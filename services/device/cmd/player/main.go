// Command player plays one display, or thousands for load, over MQTT as
// docs/device-protocol.md says.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/marquee-ads/marquee/platform/files"
	"github.com/marquee-ads/marquee/services/device/player"
)

const help = `player plays a display: it claims a device once, plays its playlist with or without
a network, and hands in each play.

  The first time, with the code that an operator made:
    player --server displays.example.com:1883 --claim-code 7KQ2-MXPB \
      --gateway https://marquee.example.com --dir /var/lib/player

  From then on, and after a loss of power:
    player --dir /var/lib/player

  As another device, or as the same after its credentials were revoked:
    player --dir /var/lib/player --claim-code 9HTX-4CWE

  Two thousand displays for load, of a file with a device id and a secret in each
  line (each needs two open files: see ulimit -n):
    player --server 127.0.0.1:1883 --credentials devices.txt --devices 2000 --dir load

  Where servers come and go, with a file that somebody keeps up to date:
    player --server-file servers.txt --dir /var/lib/player

Ctrl-C ends it; it then hands in what it can within a second. Exit codes: 0 ended,
1 failed, 2 wrong flags, 3 credentials refused and nothing to play, 4 claim code not
good.

Flags:
`

const (
	exitFailed = 1 + iota
	exitUsage
	exitRefused
	exitClaimCode
)

// usageError is what somebody typed.
type usageError struct{ error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	fmt.Fprintln(os.Stderr, "player:", err)
	os.Exit(exitCode(err))
}

func exitCode(err error) int {
	var usage usageError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, player.ErrRefused):
		return exitRefused
	case errors.Is(err, player.ErrClaimCode):
		return exitClaimCode
	}
	return exitFailed
}

// options are the flags.
type options struct {
	dir, server, serverFile, gateway, claimCode, credentials string
	devices                                                  int
	each                                                     bool
}

func parse(args []string, out io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("player", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.dir, "dir", "", "`folder` of all that is kept: credentials, playlist, media, plays")
	flags.StringVar(&o.server, "server", "", "`addresses` to connect to, host:port, with commas between them; kept")
	flags.StringVar(&o.serverFile, "server-file", "", "`file` with addresses, with commas or line breaks between them, instead of --server; read anew before each connection")
	flags.StringVar(&o.gateway, "gateway", "", "`URL` at which a claim code is traded; kept")
	flags.StringVar(&o.claimCode, "claim-code", "", "`code` that an operator made; traded once, and without effect afterwards")
	flags.StringVar(&o.credentials, "credentials", "", "`file` with a device id and its secret in each line, instead of a claim code")
	flags.IntVar(&o.devices, "devices", 0, "`number` of devices of that file to play, the first ones; 0 is all")
	flags.BoolVar(&o.each, "each", false, "print what each display shows, also of many")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(out, help)
		flags.SetOutput(out)
		flags.PrintDefaults()
		return o, err
	case err != nil:
	case flags.NArg() > 0:
		err = fmt.Errorf("%q is no flag", flags.Arg(0))
	case o.dir == "":
		err = errors.New("--dir: is needed, the folder of all that is kept")
	case o.devices < 0:
		err = fmt.Errorf("--devices: %d; use 1 or more", o.devices)
	case o.devices > 0 && o.credentials == "":
		err = errors.New("--devices: needs --credentials, the file that they are in")
	case o.server != "" && o.serverFile != "":
		err = errors.New("--server-file: it and --server exclude each other; give one")
	case o.credentials != "" && o.claimCode != "":
		err = errors.New("--claim-code: it and --credentials exclude each other; give one")
	}
	if err != nil {
		return o, usageError{fmt.Errorf("%w; --help shows examples", err)}
	}
	return o, nil
}

// addresses are those of a list, host:port.
func addresses(list string) ([]string, error) {
	var all []string
	for _, text := range strings.Split(list, ",") {
		address := strings.TrimSpace(text)
		host, port, err := net.SplitHostPort(address)
		if err != nil || host == "" || port == "" {
			return nil, fmt.Errorf("%q is no address; use host:port, for example displays.example.com:1883", address)
		}
		all = append(all, address)
	}
	return all, nil
}

// maxServerFile bounds what is read of --server-file.
const maxServerFile = 64 << 10

// serversIn are the addresses in a file; none when it has none.
func serversIn(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("--server-file: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxServerFile))
	if err != nil {
		return nil, fmt.Errorf("--server-file: reading %s: %w", path, err)
	}
	list := strings.FieldsFunc(string(text), func(r rune) bool { return unicode.IsSpace(r) || r == ',' })
	if len(list) == 0 {
		return nil, nil
	}
	all, err := addresses(strings.Join(list, ","))
	if err != nil {
		return nil, fmt.Errorf("--server-file: %s: %w", path, err)
	}
	return all, nil
}

func run(ctx context.Context, args []string, out, errOut io.Writer) error {
	o, err := parse(args, out)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return fmt.Errorf("--dir: %w", err)
	}
	lock, err := lockFolder(ctx, o.dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	identity, err := identify(ctx, o, errOut)
	if err != nil {
		return err
	}
	devices := []player.Credentials{identity.Credentials}
	if o.credentials != "" {
		if devices, err = player.ReadCredentials(o.credentials); err != nil {
			return usageError{fmt.Errorf("--credentials: %w", err)}
		}
		if len(devices) < max(o.devices, 1) {
			return usageError{fmt.Errorf("--devices: %s has %d devices, fewer than %d", o.credentials, len(devices), max(o.devices, 1))}
		}
		if o.devices > 0 {
			devices = devices[:o.devices]
		}
	}
	servers := func() ([]string, error) { return identity.Servers, nil }
	if o.serverFile != "" {
		servers = func() ([]string, error) { return serversIn(o.serverFile) }
	}
	s := newScreen(out, errOut, len(devices) == 1, o.each)
	p, err := player.New(player.Config{
		Dir: o.dir, Servers: servers, Devices: devices, Observer: s, Wall: time.Now, JournalLimit: player.DefaultJournalLimit,
		Spread: time.Duration(len(devices)-1) * connectEvery,
	})
	if err != nil {
		return err
	}
	drawn := make(chan struct{})
	drawing, stop := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(drawn)
		s.run(drawing, p.Displays())
	}()
	err = p.Run(ctx)
	stop()
	<-drawn
	return err
}

// connectEvery spreads the first connections of many displays: some 500 a second.
const connectEvery = 2 * time.Millisecond

func lockFolder(ctx context.Context, dir string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	lock, err := files.Lock(ctx, filepath.Join(dir, "lock"), nil)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("--dir: another player uses %s", dir)
	}
	return lock, err
}

// identify is who this player is: kept, or claimed now.
func identify(ctx context.Context, o options, errOut io.Writer) (player.Identity, error) {
	i, err := player.ReadIdentity(o.dir)
	if err != nil {
		return i, err
	}
	if o.server != "" {
		if i.Servers, err = addresses(o.server); err != nil {
			return i, usageError{fmt.Errorf("--server: %w", err)}
		}
	}
	if o.serverFile != "" {
		if _, err := serversIn(o.serverFile); err != nil {
			return i, usageError{err}
		}
	}
	if o.gateway != "" {
		address, err := url.Parse(o.gateway)
		if err != nil || address.Scheme != "http" && address.Scheme != "https" || address.Host == "" {
			return i, usageError{fmt.Errorf("--gateway: %q is no URL; use for example https://marquee.example.com", o.gateway)}
		}
		i.Gateway = o.gateway
	}
	code := player.NormalClaimCode(o.claimCode)
	claims := code != "" && code != i.ClaimCode
	switch {
	case len(i.Servers) == 0 && o.serverFile == "":
		return i, usageError{fmt.Errorf("--server: is needed the first time: %s keeps none", o.dir)}
	case claims && i.Gateway == "":
		return i, usageError{errors.New("--gateway: is needed to trade the claim code")}
	case !claims && o.credentials == "" && i.DeviceID == "":
		return i, usageError{fmt.Errorf("--claim-code: is needed the first time: %s keeps no credentials", o.dir)}
	}
	// Before the code is used up it is certain that the answer can be kept.
	if err := i.Keep(o.dir); err != nil {
		return i, err
	}
	if !claims {
		return i, nil
	}
	if i.Credentials, err = player.Claim(ctx, i.Gateway, code); err != nil {
		return i, err
	}
	i.ClaimCode = code
	if err := i.Keep(o.dir); err != nil {
		return i, err
	}
	fmt.Fprintf(errOut, "%s is claimed, and its credentials are kept in %s\n", i.DeviceID, o.dir)
	return i, nil
}
