package discovery

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// AdvertiseAddress is the host:port under which others reach a listener. It is
// advertise when that is set ("host", "host:port" or ":port"; what is missing is
// taken from the listener); or else the address the listener is bound to; or else,
// for a listener on all addresses, the source address of the route to the
// registry (host:port, or a URL). It never guesses from the list of interfaces: a
// registry behind a Unix socket therefore needs advertise. No packet is sent.
func AdvertiseAddress(listen net.Addr, advertise, registry string) (string, error) {
	bound, err := netip.ParseAddrPort(listen.String())
	if err != nil {
		return "", fmt.Errorf("advertise: the listener's address %q is not an IP and port: %w", listen, err)
	}
	host, port, err := splitAdvertise(advertise)
	if err != nil {
		return "", err
	}
	if port == 0 {
		port = int(bound.Port())
	}
	if port == 0 {
		return "", fmt.Errorf("advertise: the listener at %s has no port", listen)
	}
	if host == "" {
		if host, err = reachableHost(bound.Addr(), registry); err != nil {
			return "", err
		}
	}
	return net.JoinHostPort(host, strconv.Itoa(port)), nil
}

func splitAdvertise(advertise string) (host string, port int, err error) {
	if advertise == "" {
		return "", 0, nil
	}
	host = advertise
	// A bare IPv6 address has colons and no port.
	if _, notIP := netip.ParseAddr(advertise); notIP != nil && strings.Contains(advertise, ":") {
		var number string
		if host, number, err = net.SplitHostPort(advertise); err != nil {
			return "", 0, fmt.Errorf("advertise: %q is not host, host:port or :port: %w", advertise, err)
		}
		if port, err = strconv.Atoi(number); err != nil || port < 0 || port > 65535 {
			return "", 0, fmt.Errorf("advertise: %q in %q is not a port from 0 to 65535", number, advertise)
		}
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		return "", 0, fmt.Errorf("advertise: nobody can dial %s: give the address others reach this machine by", host)
	}
	return host, port, nil
}

func reachableHost(bound netip.Addr, registry string) (string, error) {
	if !bound.IsUnspecified() {
		return bound.Unmap().String(), nil
	}
	target, err := registryHostPort(registry)
	if err != nil {
		return "", err
	}
	// Connecting a UDP socket only asks the kernel for a route.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", target)
	if err != nil {
		return "", fmt.Errorf("advertise: find the route to the registry at %s: %w", target, err)
	}
	defer conn.Close()
	source, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err != nil {
		return "", fmt.Errorf("advertise: the route to the registry at %s starts at %s: %w", target, conn.LocalAddr(), err)
	}
	return source.Addr().Unmap().String(), nil
}

func registryHostPort(registry string) (string, error) {
	if strings.HasPrefix(registry, "unix:") || strings.HasPrefix(registry, "/") {
		return "", fmt.Errorf("advertise: the listener is on all addresses and the registry %s is a socket: say which address to advertise", registry)
	}
	if strings.Contains(registry, "://") {
		parsed, err := url.Parse(registry)
		if err != nil {
			return "", fmt.Errorf("advertise: the registry's address is malformed: %w", err)
		}
		registry = parsed.Host
		if parsed.Port() == "" {
			registry = net.JoinHostPort(parsed.Hostname(), "8500")
		}
	}
	if _, _, err := net.SplitHostPort(registry); err != nil {
		return "", fmt.Errorf("advertise: the registry's address %q is not host:port: %w", registry, err)
	}
	return registry, nil
}
