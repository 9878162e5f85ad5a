"""macs"""
