# A shell at its work: many short processes.
busybox=$1
for i in 1 2 3 4 5 6 7 8 9 10; do
    total=$($busybox seq 1 200 | $busybox awk '{ s += $1 } END { print s }')
    text=$($busybox echo "line $i $total" | $busybox sed 's/line/LINE/' | $busybox tr ' ' '-')
    case $text in LINE-*) ;; *) exit 1 ;; esac
    n=0
    while [ $n -lt 200 ]; do n=$((n + 1)); done
    echo "$text $n"
done
