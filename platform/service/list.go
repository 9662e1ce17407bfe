package service

// Page is which part of a list a request asks for, as the methods that list say
// it. A service's own type of the same fields is converted from it.
type Page struct {
	// Size is how many at most; 0 leaves it to the service.
	Size int
	// Token is what the page before came with; empty for the first.
	Token string
}

// PageOf is the page that a request asks for.
func PageOf(req interface {
	GetPageSize() int32
	GetPageToken() string
}) Page {
	return Page{Size: int(req.GetPageSize()), Token: req.GetPageToken()}
}

// Messages turns a list of the domain's into messages, or back.
func Messages[T, M any](list []T, message func(T) M) []M {
	all := make([]M, len(list))
	for i, value := range list {
		all[i] = message(value)
	}
	return all
}
