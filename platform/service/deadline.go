package service

import "context"

// withDeadline gives a unary call that came without a deadline the default
// one, and bounds a deadline that is too far away: a caller that forgets about
// a call must not hold its memory and its database connection for ever.
// Streams last as long as their caller wants.
func (g *grpcServer) withDeadline(c *call) (context.Context, context.CancelFunc) {
	limit := g.opts.MaxDeadline
	deadline, ok := c.Deadline()
	if !ok {
		limit = g.opts.DefaultDeadline
	} else if deadline.Sub(c.began) <= limit {
		return c, func() {}
	}
	return context.WithDeadline(c, c.began.Add(limit))
}
