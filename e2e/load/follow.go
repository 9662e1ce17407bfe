package load

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
)

// DialGRPCFollowing is DialGRPC to gateways that come and go: set says which are
// there from then on.
func DialGRPCFollowing(addresses ...string) (conn *grpc.ClientConn, set func(addresses ...string), err error) {
	r := manual.NewBuilderWithScheme("gateways")
	r.InitialState(stateOf(addresses))
	if conn, err = dialGRPC(r); err != nil {
		return nil, nil, err
	}
	return conn, func(addresses ...string) { r.UpdateState(stateOf(addresses)) }, nil
}

func stateOf(addresses []string) resolver.State {
	state := resolver.State{}
	for _, a := range addresses {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: a})
	}
	return state
}
