# Makes the files of a virtual machine that runs a test program and ends. Runs in a directory of its own; arguments: program, filter.
program=$1
filter=$2
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
mkdir -p root/bin root/proc root/sys root/dev root/run root/tmp root/mods
cp busybox/bin/busybox root/bin/
for applet in sh mount insmod poweroff unshare; do ln -s busybox "root/bin/$applet"; done
cp "$program" root/bin/tests
cp -L "$(command -v ip)" root/bin/ip
for library in $(ldd root/bin/tests root/bin/ip | grep -o '/[^ ]*' | grep '\.so' | sort -u); do
    mkdir -p "root${library%/*}"
    cp -L "$library" "root$library"
done
for module in net/llc/llc net/802/stp net/802/garp net/802/mrp net/8021q/8021q drivers/net/veth; do
    cp kernel/lib/modules/*/kernel/"$module".ko root/mods/
done
cat > root/init <<INIT
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
for module in llc stp garp mrp 8021q veth; do insmod /mods/\$module.ko; done
export PATH=/bin
ip link set lo up
/bin/tests --test-threads=1 --color=never $filter && echo all is well
poweroff -f
INIT
chmod +x root/init
(cd root && find . | cpio --quiet -o -H newc) | gzip -1 > initramfs.gz
