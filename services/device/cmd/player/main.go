// Command player plays one display, or thousands for load, over MQTT as
// docs/device-protocol.md says.
package main

import (
	"context"
	"crypto/x509"
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

  Over TLS, with a certificate that an authority of your own has signed:
    player --server mqtts://displays.example.com:8883 --tls-ca authority.pem \
      --dir /var/lib/player

  Two thousand displays for load, of a file with a device id and a secret in each
  line (each needs two open files: see ulimit -n):
    player --server 127.0.0.1:1883 --credentials devices.txt --devices 2000 --dir load

  Where servers and gateways come and go, with files that somebody keeps up to date:
    player --server-file servers.txt --gateway-file gateways.txt --dir /var/lib/player

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
	dir, server, serverFile, tlsCA, gateway, gatewayFile, claimCode, credentials string
	devices                                                                      int
	each                                                                         bool
}

func parse(args []string, out io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("player", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.dir, "dir", "", "`folder` of all that is kept: credentials, playlist, media, plays")
	flags.StringVar(&o.server, "server", "", "`addresses` to connect to, host:port, or mqtts://host:port for TLS, with commas between them; kept")
	flags.StringVar(&o.serverFile, "server-file", "", "`file` with addresses, with commas or line breaks between them, instead of --server; read anew before each connection")
	flags.StringVar(&o.tlsCA, "tls-ca", "", "`file` with the certificates (PEM) of authorities that may sign those of servers, instead of the machine's; kept")
	flags.StringVar(&o.gateway, "gateway", "", "`URLs` of gateways, with commas between them: a claim code is traded there, and media of which a playlist says no host are fetched there; kept")
	flags.StringVar(&o.gatewayFile, "gateway-file", "", "`file` with URLs of gateways, with commas or line breaks between them, instead of --gateway; read anew before each use")
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
	case o.gateway != "" && o.gatewayFile != "":
		err = errors.New("--gateway-file: it and --gateway exclude each other; give one")
	case o.credentials != "" && o.claimCode != "":
		err = errors.New("--claim-code: it and --credentials exclude each other; give one")
	}
	if err != nil {
		return o, usageError{fmt.Errorf("%w; --help shows examples", err)}
	}
	return o, nil
}

// addresses are those of a list, host:port or mqtts://host:port.
func addresses(list []string) ([]string, error) {
	var all []string
	for _, address := range list {
		address = strings.TrimPrefix(address, "mqtt://") // is what has no scheme
		host, port, err := net.SplitHostPort(strings.TrimPrefix(address, "mqtts://"))
		if err != nil || host == "" || port == "" || strings.Contains(port, "/") {
			return nil, fmt.Errorf("%q is no address; use host:port, for example displays.example.com:1883, or mqtts://host:port for TLS", address)
		}
		all = append(all, address)
	}
	return all, nil
}

// urls are those of a list, of gateways.
func urls(list []string) ([]string, error) {
	for _, text := range list {
		address, err := url.Parse(text)
		if err != nil || address.Scheme != "http" && address.Scheme != "https" || address.Host == "" {
			return nil, fmt.Errorf("%q is no URL; use for example https://marquee.example.com", text)
		}
	}
	return list, nil
}

// split are the words of a list with commas or white space between them.
func split(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || r == ',' })
}

// maxFile bounds what is read of a file that a flag names, in bytes.
const maxFile = 1 << 20

// contentOf is that of a file of text.
func contentOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", path, err)
	}
	if len(text) > maxFile {
		return "", fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}
	return string(text), nil
}

// listIn is the list in a file that a flag names, empty when it has none.
func listIn(name, path string, parse func([]string) ([]string, error)) ([]string, error) {
	text, err := contentOf(path)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", name, err)
	}
	all, err := parse(split(text))
	if err != nil {
		return nil, fmt.Errorf("--%s: %s: %w", name, path, err)
	}
	return all, nil
}

func serversIn(path string) ([]string, error) { return listIn("server-file", path, addresses) }

func gatewaysIn(path string) ([]string, error) { return listIn("gateway-file", path, urls) }

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
	gateways := func() ([]string, error) { return identity.Gateways, nil }
	if o.gatewayFile != "" {
		gateways = func() ([]string, error) { return gatewaysIn(o.gatewayFile) }
	}
	s := newScreen(out, errOut, len(devices) == 1, o.each)
	authorities, err := authoritiesIn(identity.Authorities)
	if err != nil {
		return err
	}
	p, err := player.New(player.Config{
		Dir: o.dir, Servers: servers, Gateways: gateways, Authorities: authorities, Devices: devices, Observer: s, Wall: time.Now, JournalLimit: player.DefaultJournalLimit,
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

// authoritiesIn are those of certificates as PEM; nil without any.
func authoritiesIn(text string) (*x509.CertPool, error) {
	if text == "" {
		return nil, nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(text)) {
		return nil, errors.New("--tls-ca: it has no certificate (PEM, -----BEGIN CERTIFICATE-----)")
	}
	return pool, nil
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
		if i.Servers, err = addresses(split(o.server)); err != nil {
			return i, usageError{fmt.Errorf("--server: %w", err)}
		}
	}
	if o.serverFile != "" {
		if _, err := serversIn(o.serverFile); err != nil {
			return i, usageError{err}
		}
	}
	if o.tlsCA != "" {
		text, err := contentOf(o.tlsCA)
		if err != nil {
			return i, usageError{fmt.Errorf("--tls-ca: %w", err)}
		}
		if _, err := authoritiesIn(text); err != nil {
			return i, usageError{err}
		}
		i.Authorities = text
	}
	if o.gateway != "" {
		if i.Gateways, err = urls(split(o.gateway)); err != nil {
			return i, usageError{fmt.Errorf("--gateway: %w", err)}
		}
	}
	reach := i.Gateways
	if o.gatewayFile != "" {
		if reach, err = gatewaysIn(o.gatewayFile); err != nil {
			return i, usageError{err}
		}
	}
	code := player.NormalClaimCode(o.claimCode)
	claims := code != "" && code != i.ClaimCode
	switch {
	case len(i.Servers) == 0 && o.serverFile == "":
		return i, usageError{fmt.Errorf("--server: is needed the first time: %s keeps none", o.dir)}
	case claims && len(reach) == 0:
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
	if i.Credentials, err = player.Claim(ctx, reach, code); err != nil {
		return i, err
	}
	i.ClaimCode = code
	if err := i.Keep(o.dir); err != nil {
		return i, err
	}
	fmt.Fprintf(errOut, "%s is claimed, and its credentials are kept in %s\n", i.DeviceID, o.dir)
	return i, nil
}
