# Makes the files of a virtual machine that runs test programs and ends. Runs in a directory of its own. Arguments: the datapath's kernel tests and
# a filter of theirs; the system tests and a filter of theirs; the daemon; the plugin.
kernel_tests=$1
kernel_filter=$2
system_tests=$3
system_filter=$4
daemon=$5
plugin=$6
package=linux-image-cloud-amd64
if [ ! -e kernel/boot ]; then
    apt-get -qq download "$package" busybox-static
    image=$(dpkg-deb -f "$package"_*.deb Depends | sed 's/ .*//')
    apt-get -qq download "$image"
    dpkg-deb -x busybox-static_*.deb busybox
    dpkg-deb -x "$image"_*.deb kernel
    rm -f ./*.deb
fi
rm -rf root
mkdir -p root/bin root/sbin root/proc root/sys root/dev root/run root/tmp root/var/lib root/etc
cp busybox/bin/busybox root/bin/
# The shell is another one: busybox' own prefers its applet to our `ip`.
cp -L "$(command -v dash)" root/bin/sh
for applet in mount poweroff unshare grep cut sed sysctl; do ln -s busybox "root/bin/$applet"; done
cp "$kernel_tests" root/bin/tests
# Without what only a debugger reads: the whole of it is unpacked into memory.
strip -o root/bin/system "$system_tests"
strip -o root/bin/ipamd "$daemon"
strip -o root/bin/aws-cni "$plugin"
for program in ip nft; do cp -L "$(command -v $program)" root/bin/; done
cp -L "$(command -v kmod)" root/sbin/modprobe
for library in $(for program in root/bin/* root/sbin/*; do ldd "$program" 2>/dev/null || true; done | grep -o '/[^ ]*' | grep '\.so' | sort -u); do
    mkdir -p "root${library%/*}"
    cp -L "$library" "root$library"
done
# The daemon's client of the API server does not start without roots of trust.
mkdir -p root/etc/ssl/certs
cp -L /etc/ssl/certs/ca-certificates.crt root/etc/ssl/certs/
# Rules are read as `ip` prints them, with the names of protocols.
echo 'ipv6-icmp 58 IPv6-ICMP' > root/etc/protocols
# The kernel asks modprobe for what nftables, VLANs and links need.
version=$(basename kernel/lib/modules/*)
modules=root/lib/modules/$version/kernel
mkdir -p "$modules/drivers/net"
cp kernel/lib/modules/"$version"/modules.* "root/lib/modules/$version/"
for part in net lib crypto arch/x86/crypto; do
    mkdir -p "$modules/$part"
    cp -r kernel/lib/modules/"$version"/kernel/$part/. "$modules/$part/"
done
for module in veth dummy; do cp kernel/lib/modules/"$version"/kernel/drivers/net/$module.ko "$modules/drivers/net/"; done
depmod -b root "$version"
cat > root/init <<INIT
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
export PATH=/bin:/sbin IPAMD_BIN=/bin/ipamd AWS_CNI_BIN=/bin/aws-cni LAB_PATIENCE=6
modprobe veth
well=yes
modprobe 8021q || well=no
ip link set lo up
/bin/tests --test-threads=1 --color=never $kernel_filter || well=no
/bin/system --color=never $system_filter || well=no
[ \$well = yes ] && echo all is well
poweroff -f
INIT
chmod +x root/init
(cd root && find . | cpio --quiet -o -H newc) | gzip -1 > initramfs.gz
