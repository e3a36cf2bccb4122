module spire

go 1.26.0

require github.com/spiffe/spire v1.13.0
