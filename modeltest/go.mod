module github.com/qaexchange/notification/modeltest

go 1.25

require github.com/qaexchange/notification v0.0.0

replace github.com/qaexchange/notification => ../
